package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	kjson "sigs.k8s.io/json"

	"gantry.dev/bus"
	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
)

// lastApplied is where kubectl keeps what the last apply said; the same name
// lets its users go on.
const lastApplied = corev1.LastAppliedConfigAnnotation

// Results of an apply.
const (
	created    = "created"
	configured = "configured"
	unchanged  = "unchanged"
)

// attempts bounds how often a write that carries no resourceVersion is
// computed again after another writer came first.
const attempts = 12

// manifest reads a body that holds an object and brings it together with the
// subject that it came on.
func manifest(kind schemas.Kind, call schemas.Call, body []byte) (schemas.Document, error) {
	if len(body) > schemas.MaxObjectBytes {
		return schemas.Document{}, tooLarge(kind, call.Name, fmt.Sprintf("the manifest has %d bytes", len(body)))
	}
	docs := schemas.DecodeAll(body)
	if len(docs) != 1 {
		return schemas.Document{}, apierrors.NewBadRequest(fmt.Sprintf("want one object, got %d: send each in a call of its own", len(docs)))
	}
	d := docs[0]
	if d.Err != nil {
		return d, decodeError(kind, d.Err)
	}
	if got := schemas.KindOf(d.Object); got.Resource != kind.Resource {
		return d, apierrors.NewBadRequest(fmt.Sprintf("the manifest is a %s, but the subject names %s", got.GVK.Kind, kind.Resource))
	}
	o := d.Object
	if call.Name != "" {
		if name := o.GetName(); name != "" && name != call.Name {
			return d, apierrors.NewBadRequest(fmt.Sprintf("metadata.name is %q, but the subject names %q", name, call.Name))
		}
		o.SetName(call.Name)
	}
	if !kind.Namespaced {
		return d, nil
	}
	if call.Namespace != "" {
		if ns := o.GetNamespace(); ns != "" && ns != call.Namespace {
			return d, apierrors.NewBadRequest(fmt.Sprintf("metadata.namespace is %q, but the subject names %q", ns, call.Namespace))
		}
		o.SetNamespace(call.Namespace)
	}
	if o.GetNamespace() == "" {
		return d, apierrors.NewBadRequest("metadata.namespace is empty, and so is the subject's; name one of them")
	}
	return d, nil
}

// systemOnly refuses users' writes to the kinds that Gantry writes alone.
func systemOnly(kind schemas.Kind, verb, name string) error {
	if !kind.SystemOnly {
		return nil
	}
	hint := ""
	if kind.Resource == schemas.Nodes {
		hint = "; a node is made by its agent when it connects, and patch changes its labels, annotations and spec.unschedulable"
	}
	return forbidden(kind, name, "%s of %s: Gantry alone writes them%s", verb, kind.Resource, hint)
}

func (a *Admission) create(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if err := systemOnly(kind, call.Verb, call.Name); err != nil {
		return reply{}, err
	}
	d, err := manifest(kind, call, body)
	if err != nil {
		return reply{}, err
	}
	if d.Object.GetResourceVersion() != "" {
		return reply{}, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	d.Object.SetUID("")
	return a.insertChecked(ctx, kind, d.Object)
}

// insertChecked creates what a user wrote.
func (a *Admission) insertChecked(ctx context.Context, kind schemas.Kind, o schemas.Object) (reply, error) {
	refused, warnings := schemas.Unsupported(o)
	stored, err := a.insertWith(ctx, o, func() error {
		if errs := append(refused, schemas.Validate(o)...); len(errs) > 0 {
			return invalidObject(kind, nameOf(o), errs)
		}
		return nil
	})
	if err != nil {
		return reply{}, err
	}
	body, err := json.Marshal(stored)
	return reply{body: body, result: created, warnings: warnings}, err
}

// insert creates an object of Gantry's own.
func (a *Admission) insert(ctx context.Context, o schemas.Object) (schemas.Object, error) {
	return a.insertWith(ctx, o, func() error { return nil })
}

func nameOf(o schemas.Object) string {
	if o.GetName() == "" {
		return o.GetGenerateName()
	}
	return o.GetName()
}

func (a *Admission) insertWith(ctx context.Context, o schemas.Object, check func() error) (schemas.Object, error) {
	kind := schemas.KindOf(o)
	prefix := o.GetGenerateName()
	if o.GetName() != "" {
		prefix = ""
	}
	for range attempts {
		if prefix != "" {
			o.SetName(generatedName(prefix))
		}
		lifecycle.PrepareCreate(o)
		if err := check(); err != nil {
			return nil, err
		}
		if err := fits(kind, o); err != nil {
			return nil, err
		}
		if err := a.namespaceOpen(kind, o); err != nil {
			return nil, err
		}
		stored, err := a.insertNamed(ctx, kind, o)
		if prefix != "" && apierrors.IsAlreadyExists(err) {
			continue
		}
		return stored, err
	}
	return nil, apierrors.NewServerTimeout(groupResource(kind), "create", 1)
}

// generatedName completes metadata.generateName the way Kubernetes does.
func generatedName(prefix string) string {
	const random, longest = 5, 63
	if len(prefix) > longest-random {
		prefix = prefix[:longest-random]
	}
	return prefix + utilrand.String(random)
}

func (a *Admission) insertNamed(ctx context.Context, kind schemas.Kind, o schemas.Object) (schemas.Object, error) {
	if a.store.View().Get(kind.Resource, o.GetNamespace(), o.GetName()) != nil {
		// The store would say so as well, after an address had been taken.
		return nil, apierrors.NewAlreadyExists(groupResource(kind), o.GetName())
	}
	// The UID comes first: it is who holds the address.
	o.SetUID(types.UID(uuid.NewString()))
	svc, isService := o.(*corev1.Service)
	if isService {
		if err := a.addresses.assign(ctx, svc); err != nil {
			return nil, err
		}
	}
	stored, err := a.store.Create(ctx, o)
	if err != nil {
		if isService && !errors.Is(err, context.DeadlineExceeded) {
			a.giveBack(svc)
		}
		return nil, storeError(err, kind, o.GetName(), nil)
	}
	return stored, nil
}

// giveBack releases a Service's address, whatever became of the caller. What
// fails here is reclaimed when the address is asked for again.
func (a *Admission) giveBack(svc *corev1.Service) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := a.addresses.release(ctx, svc); err != nil {
		a.log.Warn().Err(err).Str("service", svc.Namespace+"/"+svc.Name).Msg("release cluster IP")
	}
}

// namespaceOpen says that the object's namespace is there and stays.
func (a *Admission) namespaceOpen(kind schemas.Kind, o schemas.Object) error {
	if !kind.Namespaced {
		return nil
	}
	nsKind, _ := schemas.KindByResource(schemas.Namespaces)
	found, err := a.current(nsKind, "", o.GetNamespace())
	if err != nil {
		return err
	}
	if found.GetDeletionTimestamp() == nil {
		return nil
	}
	refusal := apierrors.NewForbidden(groupResource(kind), nameOf(o),
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", o.GetNamespace()))
	refusal.ErrStatus.Details.Causes = append(refusal.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: corev1.NamespaceTerminatingCause, Field: "metadata.namespace",
		Message: fmt.Sprintf("namespace %s is being terminated", o.GetNamespace()),
	})
	return refusal
}

// fits refuses an object that would not pass through the bus.
func fits(kind schemas.Kind, o schemas.Object) error {
	data, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", kind.Singular, o.GetName(), err)
	}
	if len(data) > schemas.MaxObjectBytes {
		return tooLarge(kind, nameOf(o), fmt.Sprintf("it has %d bytes", len(data)))
	}
	return nil
}

func (a *Admission) update(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if kind.Resource != schemas.Nodes {
		if err := systemOnly(kind, call.Verb, call.Name); err != nil {
			return reply{}, err
		}
	}
	d, err := manifest(kind, call, body)
	if err != nil {
		return reply{}, err
	}
	return a.modify(ctx, kind, call, d.Object.GetResourceVersion(), func(old schemas.Object) (schemas.Object, error) {
		o := d.Object.DeepCopyObject().(schemas.Object)
		return o, sameUID(kind, o, old)
	})
}

// sameUID refuses a manifest that speaks of an earlier object of the same name.
func sameUID(kind schemas.Kind, o, old schemas.Object) error {
	if uid := o.GetUID(); uid != "" && uid != old.GetUID() {
		return apierrors.NewConflict(groupResource(kind), old.GetName(),
			fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", uid, old.GetUID()))
	}
	return nil
}

func (a *Admission) patch(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if kind.Resource != schemas.Nodes {
		if err := systemOnly(kind, call.Verb, call.Name); err != nil {
			return reply{}, err
		}
	}
	patch, version, err := readPatch(body)
	if err != nil {
		return reply{}, err
	}
	return a.modify(ctx, kind, call, version, func(old schemas.Object) (schemas.Object, error) {
		current, err := toMap(old)
		if err != nil {
			return nil, err
		}
		merged, _ := mergePatch(current, patch).(map[string]any)
		o, err := fromMap(kind, merged)
		if err != nil {
			return nil, err
		}
		return o, sameUID(kind, o, old)
	})
}

// readPatch reads a merge patch and the resourceVersion that it insists on.
func readPatch(body []byte) (patch map[string]any, resourceVersion string, err error) {
	if len(body) > schemas.MaxObjectBytes {
		return nil, "", apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the patch has %d bytes, more than the limit of %d", len(body), schemas.MaxObjectBytes))
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &patch); err != nil || patch == nil {
		return nil, "", apierrors.NewBadRequest(fmt.Sprintf("the patch is not a JSON object (a merge patch, RFC 7386): %v", err))
	}
	if meta, ok := patch["metadata"].(map[string]any); ok {
		resourceVersion, _ = meta["resourceVersion"].(string)
	}
	return patch, resourceVersion, nil
}

func toMap(o schemas.Object) (map[string]any, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", o.GetName(), err)
	}
	var m map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &m); err != nil {
		return nil, fmt.Errorf("decode %s: %w", o.GetName(), err)
	}
	return m, nil
}

// fromMap reads a merged object as strictly as a manifest.
func fromMap(kind schemas.Kind, m map[string]any) (schemas.Object, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode merged object: %w", err)
	}
	o, err := schemas.Decode(data)
	if err != nil {
		return nil, decodeError(kind, err)
	}
	if got := schemas.KindOf(o); got.Resource != kind.Resource {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("kind cannot be changed to %s", got.GVK.Kind))
	}
	return o, nil
}

// modify replaces an object by what change makes of it, checked. Without a
// resourceVersion it starts again when another writer came first; with one, it
// is a conflict.
func (a *Admission) modify(ctx context.Context, kind schemas.Kind, call schemas.Call, version string,
	change func(old schemas.Object) (schemas.Object, error)) (reply, error) {
	for try := range attempts {
		old, err := a.current(kind, call.Namespace, call.Name)
		if err != nil {
			return reply{}, err
		}
		if version != "" && version != old.GetResourceVersion() {
			return reply{}, conflict(kind, call.Name, old)
		}
		updated, err := change(old)
		if err != nil {
			return reply{}, err
		}
		r, err := a.replace(ctx, kind, updated, old)
		if !errors.Is(err, bus.ErrConflict) {
			return r, err
		}
		if version != "" {
			return reply{}, conflict(kind, call.Name, a.store.View().Get(kind.Resource, call.Namespace, call.Name))
		}
		if err := pause(ctx, try); err != nil {
			return reply{}, err
		}
	}
	return reply{}, conflict(kind, call.Name, nil)
}

// pause lets the view catch up with the writer that came first.
func pause(ctx context.Context, try int) error {
	most := min(time.Millisecond<<min(try, 8), 100*time.Millisecond)
	t := time.NewTimer(most/2 + rand.N(most/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// replace checks updated against old and stores it. The error wraps
// bus.ErrConflict where old is not what is stored.
func (a *Admission) replace(ctx context.Context, kind schemas.Kind, updated, old schemas.Object) (reply, error) {
	keepAssigned(updated, old)
	refused, warnings := schemas.Unsupported(updated)
	// What is stored already is no reason to refuse a change to something else.
	if before, _ := schemas.Unsupported(old); len(before) > 0 {
		known := map[string]bool{}
		for _, e := range before {
			known[e.Error()] = true
		}
		kept := refused[:0]
		for _, e := range refused {
			if !known[e.Error()] {
				kept = append(kept, e)
			}
		}
		refused = kept
	}
	lifecycle.PrepareUpdate(updated, old)
	updated.SetResourceVersion(old.GetResourceVersion())
	if err := systemFields(kind, updated, old); err != nil {
		return reply{}, err
	}
	if errs := append(refused, schemas.ValidateUpdate(updated, old)...); len(errs) > 0 {
		return reply{}, invalidObject(kind, old.GetName(), errs)
	}
	if err := fits(kind, updated); err != nil {
		return reply{}, err
	}
	result := configured
	stored := old
	switch {
	case equality.Semantic.DeepEqual(updated, old):
		result = unchanged
	case lifecycle.Removable(updated) && !lifecycle.Removable(old):
		// The last finalizer of a deleted object was taken off.
		if err := a.remove(ctx, kind, old); err != nil {
			return reply{}, err
		}
		stored = updated
	default:
		var err error
		if stored, err = a.store.Update(ctx, updated); err != nil {
			if errors.Is(err, bus.ErrConflict) {
				return reply{}, err
			}
			return reply{}, storeError(err, kind, old.GetName(), old)
		}
	}
	body, err := json.Marshal(stored)
	return reply{body: body, result: result, warnings: warnings}, err
}

// keepAssigned carries over what Gantry filled in and a manifest leaves out.
func keepAssigned(updated, old schemas.Object) {
	switch n := updated.(type) {
	case *corev1.Service:
		if o := old.(*corev1.Service); n.Spec.ClusterIP == "" && len(n.Spec.ClusterIPs) == 0 {
			n.Spec.ClusterIP, n.Spec.ClusterIPs = o.Spec.ClusterIP, o.Spec.ClusterIPs
		}
	case *corev1.Pod:
		if o := old.(*corev1.Pod); n.Spec.NodeName == "" {
			n.Spec.NodeName = o.Spec.NodeName
		}
	}
}

// systemFields refuses changes to a system kind beyond what users may change.
func systemFields(kind schemas.Kind, updated, old schemas.Object) error {
	if !kind.SystemOnly {
		return nil
	}
	rest := updated.DeepCopyObject().(schemas.Object)
	rest.SetLabels(old.GetLabels())
	rest.SetAnnotations(old.GetAnnotations())
	rest.SetFinalizers(old.GetFinalizers())
	if n, ok := rest.(*corev1.Node); ok {
		n.Spec.Unschedulable = old.(*corev1.Node).Spec.Unschedulable
	}
	if changed := schemas.FirstDifference(rest, old); changed != "" {
		return forbidden(kind, old.GetName(), "%s is Gantry's to write; labels, annotations and spec.unschedulable may be changed", changed)
	}
	return nil
}

func (a *Admission) apply(ctx context.Context, kind schemas.Kind, call schemas.Call, body []byte) (reply, error) {
	if err := systemOnly(kind, call.Verb, call.Name); err != nil {
		return reply{}, err
	}
	d, err := manifest(kind, call, body)
	if err != nil {
		return reply{}, err
	}
	if d.Object.GetName() == "" {
		return reply{}, apierrors.NewBadRequest("apply needs metadata.name: generateName works with create only")
	}
	modified, err := asWritten(d)
	if err != nil {
		return reply{}, err
	}
	version, uid := d.Object.GetResourceVersion(), d.Object.GetUID()
	call.Name, call.Namespace = d.Object.GetName(), d.Object.GetNamespace()
	for try := range attempts {
		old := a.store.View().Get(kind.Resource, call.Namespace, call.Name)
		if old == nil {
			if version != "" {
				return reply{}, apierrors.NewNotFound(groupResource(kind), call.Name)
			}
			o, err := fromMap(kind, modified)
			if err != nil {
				return reply{}, err
			}
			r, err := a.insertChecked(ctx, kind, o)
			if !apierrors.IsAlreadyExists(err) {
				return r, err
			}
		} else {
			r, err := a.modify(ctx, kind, call, version, func(old schemas.Object) (schemas.Object, error) {
				if uid != "" && uid != old.GetUID() {
					return nil, sameUID(kind, d.Object, old)
				}
				return merged(kind, modified, old)
			})
			if version != "" || !apierrors.IsNotFound(err) {
				return r, err
			}
		}
		// It came or went meanwhile.
		if err := pause(ctx, try); err != nil {
			return reply{}, err
		}
	}
	return reply{}, conflict(kind, call.Name, nil)
}

// asWritten is the manifest as a map, without what is Gantry's to say, with
// itself recorded in the annotation that the next apply compares with.
func asWritten(d schemas.Document) (map[string]any, error) {
	var m map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(d.JSON, &m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	delete(m, "status")
	meta, ok := m["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		m["metadata"] = meta
	}
	for _, key := range []string{"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation",
		"managedFields", "selfLink", "uid", "resourceVersion"} {
		delete(meta, key)
	}
	meta["name"] = d.Object.GetName()
	if ns := d.Object.GetNamespace(); ns != "" {
		meta["namespace"] = ns
	}
	annotations, ok := meta["annotations"].(map[string]any)
	if !ok {
		annotations = map[string]any{}
		meta["annotations"] = annotations
	}
	delete(annotations, lastApplied)
	record, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if len(record) > apivalidation.TotalAnnotationSizeLimitB {
		return nil, tooLarge(schemas.KindOf(d.Object), d.Object.GetName(), fmt.Sprintf(
			"apply keeps the manifest in an annotation, which may have %d bytes, and this one has %d; use create or update",
			apivalidation.TotalAnnotationSizeLimitB, len(record)))
	}
	annotations[lastApplied] = string(record) + "\n"
	return m, nil
}

// merged is what applying modified makes of old.
func merged(kind schemas.Kind, modified map[string]any, old schemas.Object) (schemas.Object, error) {
	current, err := toMap(old)
	if err != nil {
		return nil, err
	}
	var original map[string]any
	if record := old.GetAnnotations()[lastApplied]; record != "" {
		// A record that cannot be read takes nothing out: kubectl fails here, but
		// then no apply could ever mend it.
		if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(record), &original); err != nil {
			original = nil
		}
	}
	return fromMap(kind, mergeApply(original, modified, current, reflect.TypeOf(old)))
}
