package admission

import (
	"context"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

// scale serves the subresource by which the number of replicas is read and
// set without the rest of the object, as autoscaling/v1 Scale.
func (a *Admission) scale(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if kind.Resource != schemas.Deployments && kind.Resource != schemas.ReplicaSets {
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("%s cannot be scaled", kind.Resource))
	}
	if call.Name == "" || call.Namespace == "" {
		return reply{}, apierrors.NewBadRequest("scale: the subject names no object")
	}
	switch call.Verb {
	case schemas.VerbGet:
		o, err := a.current(kind, call.Namespace, call.Name)
		if err != nil {
			return reply{}, err
		}
		data, err := json.Marshal(scaleOf(o))
		return reply{body: data}, err
	case schemas.VerbUpdate, schemas.VerbPatch:
	default:
		return reply{}, apierrors.NewBadRequest(fmt.Sprintf("scale has no verb %q; there are get, update and patch", call.Verb))
	}
	patch, version, err := readPatch(body)
	if err != nil {
		return reply{}, err
	}
	var result *autoscalingv1.Scale
	r, err := a.modify(ctx, kind, call, version, func(old schemas.Object) (schemas.Object, error) {
		asked, err := askedScale(old, patch, call.Verb == schemas.VerbUpdate)
		if err != nil {
			return nil, err
		}
		updated := old.DeepCopyObject().(schemas.Object)
		switch o := updated.(type) {
		case *appsv1.Deployment:
			o.Spec.Replicas = &asked.Spec.Replicas
		case *appsv1.ReplicaSet:
			o.Spec.Replicas = &asked.Spec.Replicas
		}
		result = asked
		return updated, nil
	})
	if err != nil {
		return reply{}, err
	}
	stored, err := schemas.Decode(r.body)
	if err != nil {
		return reply{}, fmt.Errorf("read scaled %s: %w", kind.Singular, err)
	}
	now := scaleOf(stored)
	now.Spec = result.Spec
	r.body, err = json.Marshal(now)
	return r, err
}

// askedScale is the Scale that a caller wants: the present one with the patch
// merged in, or the patch alone.
func askedScale(old schemas.Object, patch map[string]any, whole bool) (*autoscalingv1.Scale, error) {
	doc := any(patch)
	if !whole {
		data, err := json.Marshal(scaleOf(old))
		if err != nil {
			return nil, fmt.Errorf("encode scale: %w", err)
		}
		var present map[string]any
		if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &present); err != nil {
			return nil, fmt.Errorf("decode scale: %w", err)
		}
		doc = mergePatch(present, patch)
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode scale: %w", err)
	}
	var s autoscalingv1.Scale
	if err := decodeOptions(data, &s, "Scale"); err != nil {
		return nil, err
	}
	if spec, ok := doc.(map[string]any)["spec"].(map[string]any); !ok || spec["replicas"] == nil {
		return nil, apierrors.NewBadRequest("read Scale: spec.replicas: required")
	}
	if s.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: "autoscaling", Kind: "Scale"}, old.GetName(), field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), s.Spec.Replicas, "must be greater than or equal to 0")})
	}
	return &s, nil
}

func scaleOf(o schemas.Object) *autoscalingv1.Scale {
	s := &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{Kind: "Scale", APIVersion: "autoscaling/v1"},
		ObjectMeta: metav1.ObjectMeta{
			Name: o.GetName(), Namespace: o.GetNamespace(), UID: o.GetUID(),
			ResourceVersion: o.GetResourceVersion(), CreationTimestamp: o.GetCreationTimestamp(),
		},
	}
	var selector *metav1.LabelSelector
	var replicas *int32
	switch o := o.(type) {
	case *appsv1.Deployment:
		selector, replicas, s.Status.Replicas = o.Spec.Selector, o.Spec.Replicas, o.Status.Replicas
	case *appsv1.ReplicaSet:
		selector, replicas, s.Status.Replicas = o.Spec.Selector, o.Spec.Replicas, o.Status.Replicas
	}
	if replicas != nil {
		s.Spec.Replicas = *replicas
	}
	if sel, err := metav1.LabelSelectorAsSelector(selector); err == nil {
		s.Status.Selector = sel.String()
	}
	return s
}
