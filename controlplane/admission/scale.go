package admission

import (
	"context"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"gantry.dev/schemas"
)

// scale serves the subresource by which the number of replicas is read and
// set without the rest of the object, as autoscaling/v1 Scale.
func (a *Admission) scale(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if replicasOf(kind.New()) == nil {
		return reply{}, noSubresource(kind, call)
	}
	if err := verbOf(kind, call, schemas.VerbGet, schemas.VerbUpdate, schemas.VerbPatch); err != nil {
		return reply{}, err
	}
	if err := single(kind, call); err != nil {
		return reply{}, err
	}
	if call.Verb == schemas.VerbGet {
		if err := a.reachGet(ctx, kind, body); err != nil {
			return reply{}, err
		}
		o, err := a.current(kind, call.Namespace, call.Name)
		if err != nil {
			return reply{}, err
		}
		return scaleReply(o, false)
	}
	if err := systemOnly(kind, call.Verb, call.Name); err != nil {
		return reply{}, err
	}
	var p patch
	if call.Verb == schemas.VerbPatch {
		var err error
		if p, err = readPatch(header, body); err != nil {
			return reply{}, err
		}
	} else if len(body) > schemas.MaxObjectBytes {
		return reply{}, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the Scale has %d bytes, more than the limit of %d", len(body), schemas.MaxObjectBytes))
	}
	w, err := readWrite(kind, call, header, body, p.kind)
	if err != nil {
		return reply{}, err
	}
	w.answer = scaleReply
	if p.kind == types.ApplyPatchType {
		return a.applyScale(ctx, w, body)
	}
	return a.modify(ctx, w, specRules, func(old schemas.Object) (schemas.Object, error) {
		asked := body
		if call.Verb == schemas.VerbPatch {
			doc, err := scaleReply(old, false)
			if err != nil {
				return nil, fmt.Errorf("encode scale: %w", err)
			}
			if asked, err = p.apply(ctx, doc.body, &autoscalingv1.Scale{}); err != nil {
				return nil, err
			}
		}
		s, err := readScale(asked, old, call.Verb == schemas.VerbUpdate)
		if err != nil {
			return nil, err
		}
		updated := old.DeepCopyObject().(schemas.Object)
		*replicasOf(updated) = &s.Spec.Replicas
		updated.SetResourceVersion(s.ResourceVersion)
		return updated, nil
	})
}

// replicasOf is where an object keeps how many replicas are asked for, nil
// where its kind cannot be scaled.
func replicasOf(o schemas.Object) **int32 {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Replicas
	case *appsv1.ReplicaSet:
		return &o.Spec.Replicas
	case *appsv1.StatefulSet:
		return &o.Spec.Replicas
	case *corev1.ReplicationController:
		return &o.Spec.Replicas
	}
	return nil
}

// scaleReply writes the number of replicas in any case: Kubernetes' type leaves
// out zero, and then no operation of a patch finds it.
func scaleReply(o schemas.Object, _ bool) (reply, error) {
	s := scaleOf(o)
	out := struct {
		*autoscalingv1.Scale `json:",inline"`
		Spec                 struct {
			Replicas int32 `json:"replicas"`
		} `json:"spec"`
	}{Scale: s}
	out.Spec.Replicas = s.Spec.Replicas
	data, err := json.Marshal(out)
	return reply{body: data}, err
}

// readScale reads the Scale that a caller wants of an object. In a whole one no
// number means zero, as its type writes it; what a patch has removed or an apply
// leaves out is no number.
func readScale(data []byte, old schemas.Object, whole bool) (*autoscalingv1.Scale, error) {
	var s autoscalingv1.Scale
	if err := decodeOptions(data, &s, "Scale"); err != nil {
		return nil, err
	}
	invalid := func(err *field.Error) error {
		return invalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), old.GetName(), field.ErrorList{err})
	}
	at := field.NewPath("spec", "replicas")
	var said struct {
		Spec *struct {
			Replicas *int32 `json:"replicas"`
		} `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &said); err != nil || said.Spec == nil || said.Spec.Replicas == nil && !whole {
		return nil, invalid(field.Required(at, ""))
	}
	switch {
	case s.Spec.Replicas < 0:
		return nil, invalid(field.Invalid(at, s.Spec.Replicas, "must be greater than or equal to 0"))
	case s.Kind != "" && s.Kind != "Scale" || s.APIVersion != "" && s.APIVersion != autoscalingv1.SchemeGroupVersion.String():
		return nil, apierrors.NewBadRequest(fmt.Sprintf("read Scale: want kind Scale of %s, got %s of %s", autoscalingv1.SchemeGroupVersion, s.Kind, s.APIVersion))
	case s.Name != "" && s.Name != old.GetName() || s.Namespace != "" && s.Namespace != old.GetNamespace():
		return nil, apierrors.NewBadRequest(fmt.Sprintf("read Scale: it is of %s/%s, but the subject names %s/%s", s.Namespace, s.Name, old.GetNamespace(), old.GetName()))
	}
	return &s, sameUID(schemas.KindOf(old), &s.ObjectMeta, old)
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
	case *appsv1.StatefulSet:
		selector, replicas, s.Status.Replicas = o.Spec.Selector, o.Spec.Replicas, o.Status.Replicas
	case *corev1.ReplicationController:
		selector, replicas, s.Status.Replicas = metav1.SetAsLabelSelector(o.Spec.Selector), o.Spec.Replicas, o.Status.Replicas
	}
	if replicas != nil {
		s.Spec.Replicas = *replicas
	}
	if sel, err := metav1.LabelSelectorAsSelector(selector); err == nil {
		s.Status.Selector = sel.String()
	}
	return s
}
