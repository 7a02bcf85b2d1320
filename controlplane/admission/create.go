package admission

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"gantry.dev/controlplane/lifecycle"
	"gantry.dev/schemas"
)

func (a *Admission) create(ctx context.Context, kind schemas.Kind, call schemas.Call, header map[string][]string, body []byte) (reply, error) {
	if err := systemOnly(kind, call.Verb, call.Name); err != nil {
		return reply{}, err
	}
	w, err := readWrite(kind, call, header, body, "")
	if err != nil {
		return reply{}, err
	}
	d, err := manifest(kind, call, body)
	if err != nil {
		return reply{}, err
	}
	if d.Object.GetResourceVersion() != "" {
		return reply{}, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	// The store's to say.
	d.Object.SetUID("")
	d.Object.SetCreationTimestamp(metav1.Time{})
	d.Object.SetManagedFields(nil)
	return a.insertChecked(ctx, w, d.Object)
}

// insertChecked creates what a user wrote.
func (a *Admission) insertChecked(ctx context.Context, w write, o schemas.Object) (reply, error) {
	refused, warnings := schemas.Unsupported(o)
	r, err := a.insertWith(ctx, w, o, func() error {
		if errs := append(refused, schemas.Validate(o)...); len(errs) > 0 {
			return invalidObject(w.kind, nameOf(o), errs)
		}
		return nil
	})
	r.warnings = warnings
	return r, err
}

// insert creates an object of Gantry's own.
func (a *Admission) insert(ctx context.Context, o schemas.Object) error {
	_, err := a.insertWith(ctx, write{kind: schemas.KindOf(o)}, o, func() error { return nil })
	return err
}

// insertWith completes and stores a new object. check is asked once it is
// complete.
func (a *Admission) insertWith(ctx context.Context, w write, o schemas.Object, check func() error) (reply, error) {
	prefix := o.GetGenerateName()
	if o.GetName() != "" {
		prefix = ""
	}
	for try := range attempts {
		if prefix != "" {
			o.SetName(generatedName(prefix, w.id, try))
		}
		w.call.Namespace, w.call.Name = o.GetNamespace(), o.GetName()
		if r, found, err := a.repeated(ctx, w, false); found || err != nil {
			return r, err
		}
		lifecycle.PrepareCreate(o)
		if err := check(); err != nil {
			return reply{}, err
		}
		if err := fits(w.kind, o); err != nil {
			return reply{}, err
		}
		if err := a.namespaceOpen(w.kind, o); err != nil {
			return reply{}, err
		}
		stored, err := a.insertNamed(ctx, w, o)
		if apierrors.IsAlreadyExists(err) {
			if r, found, lookErr := a.repeated(ctx, w, true); found && lookErr == nil {
				return r, nil
			}
			if prefix != "" {
				continue
			}
		}
		if err != nil {
			return reply{}, err
		}
		r, err := w.reply(stored, false)
		r.result = created
		return r, err
	}
	return reply{}, apierrors.NewServerTimeout(groupResource(w.kind), "create", 1)
}

// generatedName completes metadata.generateName the way Kubernetes does. With
// a request's id the letters follow from it, so that the request asked again
// comes to the same name.
func generatedName(prefix, id string, try int) string {
	const random, longest = 5, 63
	if len(prefix) > longest-random {
		prefix = prefix[:longest-random]
	}
	if id == "" {
		return prefix + utilrand.String(random)
	}
	const letters = "bcdfghjklmnpqrstvwxz2456789" // utilrand's: no word comes of them
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s %s %d", prefix, id, try) // a hash takes everything
	sum := h.Sum64()
	name := []byte(prefix)
	for range random {
		name = append(name, letters[sum%uint64(len(letters))])
		sum /= uint64(len(letters))
	}
	return string(name)
}

func (a *Admission) insertNamed(ctx context.Context, w write, o schemas.Object) (schemas.Object, error) {
	kind := w.kind
	if a.store.View().Get(kind.Resource, o.GetNamespace(), o.GetName()) != nil {
		// The store would say so as well, after an address had been taken.
		return nil, apierrors.NewAlreadyExists(groupResource(kind), o.GetName())
	}
	// The UID comes first: it is who holds the address.
	o.SetUID(types.UID(uuid.NewString()))
	svc, isService := o.(*corev1.Service)
	if w.dryRun {
		o.SetCreationTimestamp(metav1.NewTime(a.now().UTC().Truncate(time.Second)))
		if isService {
			return o, a.addresses.check(svc)
		}
		return o, nil
	}
	if isService {
		if err := a.addresses.assign(ctx, svc); err != nil {
			return nil, err
		}
	}
	stored, err := a.store.Create(w.context(ctx, created), o)
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
