package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
)

// binding serves create of pods/binding: it puts a pod on a node, once. Like
// Kubernetes' it asks nobody whether the pod fits there, and takes a node that
// is cordoned; unlike it, the node has to exist.
func (a *Admission) binding(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if kind.Resource != schemas.Pods {
		return reply{}, noSubresource(kind, call)
	}
	if err := verbOf(kind, call, schemas.VerbCreate); err != nil {
		return reply{}, err
	}
	var b corev1.Binding
	if err := decodeOptions(body, &b, "Binding"); err != nil {
		return reply{}, err
	}
	call, err := subject(kind, call, &b.ObjectMeta)
	if err != nil {
		return reply{}, err
	}
	if err := a.checkTarget(&b); err != nil {
		return reply{}, err
	}
	w, err := readWrite(kind, call, header, body, "")
	if err != nil {
		return reply{}, err
	}
	w.answer = func(o schemas.Object, _ bool) (reply, error) { return success(kind, call.Name, o) }
	return a.modify(ctx, w, bindingRules, func(old schemas.Object) (schemas.Object, error) {
		pod, ok := old.DeepCopyObject().(*corev1.Pod)
		if !ok {
			return nil, fmt.Errorf("%s %q is a %T", kind.Resource, call.Name, old)
		}
		return a.bound(pod, &b)
	})
}

// bound puts a pod on the binding's node.
func (a *Admission) bound(pod *corev1.Pod, b *corev1.Binding) (schemas.Object, error) {
	kind := schemas.KindOf(pod)
	refuse := func(format string, args ...any) error {
		return apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, pod.Name, fmt.Errorf(format, args...))
	}
	if err := preconditions(kind, pod, bindingPreconditions(b)); err != nil {
		return nil, err
	}
	if pod.DeletionTimestamp != nil {
		return nil, refuse("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	}
	if pod.Spec.NodeName != "" {
		return nil, refuse("pod %s is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	}
	pod.Spec.NodeName = b.Target.Name
	for key, value := range b.Annotations {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, key, value)
	}
	for key, value := range b.Labels {
		metav1.SetMetaDataLabel(&pod.ObjectMeta, key, value)
	}
	condition := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(a.now().UTC())}
	for i, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			pod.Status.Conditions[i] = condition
			return pod, nil
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, condition)
	return pod, nil
}

// bindingRules keep what bound made of the pod, and check it as new: that its
// node was set is no change to what a user wrote.
func bindingRules(kind schemas.Kind, updated, old schemas.Object) ([]string, error) {
	updated.SetGeneration(old.GetGeneration())
	if !lifecycle.Removable(old) {
		if errs := schemas.Validate(updated); len(errs) > 0 {
			return nil, invalidObject(kind, old.GetName(), errs)
		}
	}
	return nil, nil
}

func bindingPreconditions(b *corev1.Binding) *metav1.Preconditions {
	p := &metav1.Preconditions{}
	if b.UID != "" {
		p.UID = &b.UID
	}
	if b.ResourceVersion != "" {
		p.ResourceVersion = &b.ResourceVersion
	}
	return p
}

func (a *Admission) checkTarget(b *corev1.Binding) error {
	at := field.NewPath("target")
	var errs field.ErrorList
	if k := b.Target.Kind; k != "" && k != "Node" {
		errs = append(errs, field.NotSupported(at.Child("kind"), k, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), ""))
	}
	if len(errs) > 0 {
		return invalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), b.Name, errs)
	}
	nodes, _ := schemas.KindByResource(schemas.Nodes)
	_, err := a.current(nodes, "", b.Target.Name)
	return err
}

// subject brings the body of a pod's subresource together with the subject
// that it came on.
func subject(kind schemas.Kind, call schemas.Call, meta *metav1.ObjectMeta) (schemas.Call, error) {
	for _, f := range []struct {
		name       string
		said, told *string
	}{{"metadata.name", &meta.Name, &call.Name}, {"metadata.namespace", &meta.Namespace, &call.Namespace}} {
		switch {
		case *f.told == "":
			*f.told = *f.said
		case *f.said != "" && *f.said != *f.told:
			return call, apierrors.NewBadRequest(fmt.Sprintf("%s is %q, but the subject names %q", f.name, *f.said, *f.told))
		}
	}
	return call, single(kind, call)
}
