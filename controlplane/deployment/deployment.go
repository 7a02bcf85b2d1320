package deployment

import (
	"strings"
	"time"

	"gantry.dev/bus"
	"gantry.dev/controlplane/reconcile"
	"gantry.dev/controlplane/replicaset"
	"gantry.dev/schemas"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// New is the controller of Deployments.
func New() reconcile.Controller {
	return reconcile.Controller{
		Name:  "deployment",
		Reads: []string{schemas.Deployments, schemas.ReplicaSets, schemas.Pods},
		Writes: []string{
			schemas.ReplicaSets + "@Deployment",
			schemas.Deployments + "/status",
			schemas.Deployments + "/metadata.annotations[" + revisionAnnotation + "]",
		},
		Wakes:     wakes,
		Reconcile: reconcileKey,
	}
}

func wakes(c bus.Change, view bus.View) []string {
	switch c.Resource {
	case schemas.Deployments:
		o := c.Object()
		return []string{reconcile.Key(o.GetNamespace(), o.GetName())}
	case schemas.ReplicaSets:
		return wokenByReplicaSet(c, view)
	}
	return wokenByPod(c, view)
}

func wokenByReplicaSet(c bus.Change, view bus.View) []string {
	var keys []string
	for _, o := range []schemas.Object{c.Old, c.New} {
		if o == nil {
			continue
		}
		if key := reconcile.ControllerKey(o, "Deployment"); key != "" {
			keys = append(keys, key)
		}
	}
	if len(keys) > 0 || c.New == nil {
		return keys
	}
	// Nothing controls it: whoever selects it may adopt it.
	for _, o := range view.List(schemas.Deployments, c.New.GetNamespace()) {
		d, ok := o.(*appsv1.Deployment)
		if !ok {
			continue
		}
		if s, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil && !s.Empty() && s.Matches(labels.Set(c.New.GetLabels())) {
			keys = append(keys, reconcile.Key(d.Namespace, d.Name))
		}
	}
	return keys
}

// wokenByPod: only strategy Recreate looks at pods, and it waits for the last
// old one to be gone.
func wokenByPod(c bus.Change, view bus.View) []string {
	if c.New != nil {
		return nil
	}
	ref := metav1.GetControllerOfNoCopy(c.Old)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	rs := view.Get(schemas.ReplicaSets, c.Old.GetNamespace(), ref.Name)
	if rs == nil {
		return nil
	}
	key := reconcile.ControllerKey(rs, "Deployment")
	if key == "" {
		return nil
	}
	namespace, name, _ := strings.Cut(key, "/")
	d, ok := view.Get(schemas.Deployments, namespace, name).(*appsv1.Deployment)
	if !ok || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []string{key}
}

// rollout is one Deployment with its sets, while it is thought about. The sets
// are copies: what is changed in them is what the outcome wants.
type rollout struct {
	d    *appsv1.Deployment // a copy
	view bus.View
	now  time.Time
	out  *reconcile.Outcome
	// newest has the template of the Deployment; nil where there is none yet.
	newest *appsv1.ReplicaSet
	// old are all others, oldest first.
	old []*appsv1.ReplicaSet
	// counts are those of the pods in the view, by the set's UID.
	counts map[types.UID]counts
}

type counts struct{ active, available int32 }

func reconcileKey(key string, view bus.View, now time.Time) reconcile.Outcome {
	namespace, name, _ := strings.Cut(key, "/")
	stored, ok := view.Get(schemas.Deployments, namespace, name).(*appsv1.Deployment)
	if !ok {
		return reconcile.Outcome{} // its sets are the garbage collector's
	}
	selector, err := metav1.LabelSelectorAsSelector(stored.Spec.Selector)
	if err != nil || selector.Empty() {
		return reconcile.Outcome{} // admission refuses both
	}

	var out reconcile.Outcome
	r := &rollout{d: stored.DeepCopy(), view: view, now: now, out: &out, counts: map[types.UID]counts{}}
	r.claim(selector)
	switch ns := view.Get(schemas.Namespaces, "", namespace); {
	case r.d.DeletionTimestamp != nil, ns != nil && ns.GetDeletionTimestamp() != nil:
		// It is going: only say what is seen.
	case r.d.Spec.Paused, r.scaled():
		r.scale()
		r.settle()
	case r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		r.recreate()
		r.settle()
	default:
		r.roll()
		r.settle()
	}
	r.status(stored)
	out.Keep(stored, r.d)
	return out
}

// claim finds the sets of the Deployment, adopts what matches and nobody
// controls, and lets go of what no longer matches.
func (r *rollout) claim(selector labels.Selector) {
	var sets []*appsv1.ReplicaSet
	for _, o := range reconcile.Dependents(r.view, schemas.ReplicaSets, r.d.UID) {
		rs, ok := o.(*appsv1.ReplicaSet)
		if !ok {
			continue
		}
		if selector.Matches(labels.Set(rs.Labels)) {
			set := rs.DeepCopy()
			r.out.Keep(rs, set)
			sets = append(sets, set)
		} else if r.d.DeletionTimestamp == nil {
			released := rs.DeepCopy()
			released.OwnerReferences = reconcile.WithoutOwner(rs.OwnerReferences, r.d.UID)
			r.out.Keep(rs, released)
		}
	}
	if r.d.DeletionTimestamp == nil {
		for _, o := range reconcile.Orphans(r.view, schemas.ReplicaSets, r.d.Namespace, selector) {
			rs, ok := o.(*appsv1.ReplicaSet)
			if !ok || rs.DeletionTimestamp != nil {
				continue
			}
			adopted := rs.DeepCopy()
			adopted.OwnerReferences = append(adopted.OwnerReferences, owner(r.d))
			r.out.Keep(rs, adopted)
			sets = append(sets, adopted)
		}
	}
	sortByAge(sets)
	for _, rs := range sets {
		switch {
		case r.newest == nil && rs.DeletionTimestamp == nil && sameTemplate(&rs.Spec.Template, &r.d.Spec.Template):
			r.newest = rs
		default:
			r.old = append(r.old, rs)
		}
	}
}

// all are the sets, the newest last.
func (r *rollout) all() []*appsv1.ReplicaSet {
	all := append([]*appsv1.ReplicaSet(nil), r.old...)
	if r.newest != nil {
		all = append(all, r.newest)
	}
	return all
}

// count looks at the pods themselves: a set's status lags behind them, and on
// an old count the rollout would take one pod too many.
func (r *rollout) count(rs *appsv1.ReplicaSet) counts {
	if rs.UID == "" {
		return counts{} // not made yet
	}
	n, ok := r.counts[rs.UID]
	if !ok {
		for _, o := range reconcile.Dependents(r.view, schemas.Pods, rs.UID) {
			p, isPod := o.(*corev1.Pod)
			if !isPod || !replicaset.Active(p) {
				continue
			}
			n.active++
			if yes, _ := replicaset.Available(p, rs.Spec.MinReadySeconds, r.now); yes {
				n.available++
			}
		}
		r.counts[rs.UID] = n
	}
	return n
}

// available never counts more pods than the set should have: those above are
// being given up already.
func (r *rollout) available(rs *appsv1.ReplicaSet) int32 {
	return min(r.count(rs).available, replicas(rs))
}

// settle writes down on the sets what was decided, and lets go of those that
// no history needs.
func (r *rollout) settle() {
	r.annotateSizes()
	r.annotateRevision()
	r.cleanUp()
}

// resize sets how many pods a set should have and tells of it.
func (r *rollout) resize(rs *appsv1.ReplicaSet, to int32) {
	from := replicas(rs)
	if from == to || rs.DeletionTimestamp != nil {
		return
	}
	rs.Spec.Replicas = &to
	verb := "up"
	if to < from {
		verb = "down"
	}
	r.event("ScalingReplicaSet", "Scaled "+verb+" replica set "+rs.Name+" from "+itoa(from)+" to "+itoa(to), rs)
}

func (r *rollout) event(reason, message string, after schemas.Object) {
	r.out.Events = append(r.out.Events, reconcile.Event{
		Involved: r.d,
		Type:     corev1.EventTypeNormal,
		Reason:   reason,
		Message:  message,
		After:    schemas.KeyOf(after),
	})
}

func owner(d *appsv1.Deployment) metav1.OwnerReference {
	return *metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))
}
