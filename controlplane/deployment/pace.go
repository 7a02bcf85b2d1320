package deployment

import (
	"cmp"
	"slices"
	"strconv"

	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// roll takes one step of a rolling update: as many new pods as the surge has
// room for, and as few old ones as leave enough available. The two halves look
// at the same moment and neither counts on the other, so either may be lost.
func (r *rollout) roll() {
	if !r.ensureNewest() {
		return
	}
	r.resize(r.newest, r.newestSize())
	r.shrinkOld()
}

// newestSize is what the newest set may have now.
func (r *rollout) newestSize() int32 {
	want, have := desired(r.d), replicas(r.newest)
	if have >= want {
		return want
	}
	return have + min(r.room(), want-have)
}

// room is how many pods may be added. A set that was made smaller may still
// have the pods, so both are looked at.
func (r *rollout) room() int32 {
	room := desired(r.d) + maxSurge(r.d)
	for _, rs := range r.all() {
		room -= max(replicas(rs), r.count(rs).active)
	}
	return max(0, room)
}

// shrinkOld gives up pods of the old sets: first those that serve nobody, then
// as many as there are available pods to spare.
func (r *rollout) shrinkOld() {
	if total(r.old) == 0 {
		return
	}
	all := r.all()
	least := desired(r.d) - maxUnavailable(r.d)
	// New pods that are not available yet may never be: count as if.
	spare := total(all) - least - (replicas(r.newest) - r.available(r.newest))
	if spare <= 0 {
		return
	}
	for _, rs := range r.old {
		unhealthy := replicas(rs) - r.available(rs)
		n := max(0, min(unhealthy, spare))
		spare -= n
		r.resize(rs, replicas(rs)-n)
	}
	spare = 0
	for _, rs := range all {
		spare += r.available(rs)
	}
	spare -= least
	for _, rs := range r.old {
		n := max(0, min(replicas(rs), spare))
		spare -= n
		r.resize(rs, replicas(rs)-n)
	}
}

// recreate ends all old pods, waits until nothing is left of them, and only
// then makes new ones.
func (r *rollout) recreate() {
	if total(r.old) > 0 {
		for _, rs := range r.old {
			r.resize(rs, 0)
		}
		return
	}
	for _, rs := range r.old {
		if slices.ContainsFunc(reconcile.Dependents(r.view, schemas.Pods, rs.UID), running) {
			return
		}
	}
	if r.ensureNewest() {
		r.resize(r.newest, desired(r.d))
	}
}

// running includes pods that are ending: they may still hold what their
// successors need.
func running(o schemas.Object) bool {
	p, ok := o.(*corev1.Pod)
	return ok && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// scaled says that the Deployment's size has changed since its sets were sized.
func (r *rollout) scaled() bool {
	return slices.ContainsFunc(r.all(), func(rs *appsv1.ReplicaSet) bool {
		n, err := strconv.Atoi(rs.Annotations[desiredAnnotation])
		return err == nil && replicas(rs) > 0 && int32(n) != desired(r.d)
	})
}

// scale brings the sets to the Deployment's size without moving pods from one
// to another: in the midst of a rollout each set keeps its share.
func (r *rollout) scale() {
	active := slices.DeleteFunc(r.all(), func(rs *appsv1.ReplicaSet) bool { return replicas(rs) == 0 })
	switch {
	case len(active) == 0:
		if all := r.all(); len(all) > 0 {
			r.resize(all[len(all)-1], min(r.room(), desired(r.d)))
		}
	case len(active) == 1:
		r.resize(active[0], min(replicas(active[0])+r.room(), desired(r.d)))
	case r.newest != nil && replicas(r.newest) == desired(r.d) && r.available(r.newest) == desired(r.d):
		for _, rs := range r.old {
			r.resize(rs, 0)
		}
	case r.d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType:
		r.scaleInProportion(active)
	}
}

func (r *rollout) scaleInProportion(active []*appsv1.ReplicaSet) {
	limit := int32(0)
	if desired(r.d) > 0 {
		limit = desired(r.d) + maxSurge(r.d)
	}
	left := limit - total(active)
	growing := left > 0
	if growing {
		left = r.room() // of what is left out now, the end of the last old pods reminds
	}
	// The largest first; of equals the newest where pods are added, the oldest
	// where they are taken: both hasten the rollout.
	age := map[*appsv1.ReplicaSet]int{}
	for i, rs := range active {
		age[rs] = i
	}
	slices.SortStableFunc(active, func(a, b *appsv1.ReplicaSet) int {
		byAge := cmp.Compare(age[a], age[b])
		if growing {
			byAge = -byAge
		}
		return cmp.Or(cmp.Compare(replicas(b), replicas(a)), byAge)
	})
	sizes := make([]int32, len(active))
	for i, rs := range active {
		sizes[i] = replicas(rs)
		if left == 0 {
			continue
		}
		share := r.share(rs, limit)
		if growing {
			share = min(share, left)
		} else {
			share = max(share, left)
		}
		sizes[i] += share
		left -= share
	}
	sizes[0] = max(0, sizes[0]+left) // what rounding left over
	if !growing {
		r.keepAvailable(active, sizes)
	}
	for i, rs := range active {
		r.resize(rs, sizes[i])
	}
}

// keepAvailable moves what shrinking takes from pods that serve to pods that do
// not, where otherwise too few would be left that do. Kubernetes keeps strictly
// to the shares here and so may take a service down when somebody scales it
// down in the midst of a bad rollout.
func (r *rollout) keepAvailable(sets []*appsv1.ReplicaSet, sizes []int32) {
	lack := desired(r.d) - maxUnavailable(r.d)
	for i, rs := range sets {
		lack -= min(r.available(rs), sizes[i])
	}
	for i, rs := range sets {
		give := max(0, min(lack, r.available(rs)-sizes[i]))
		for j, other := range sets {
			take := max(0, min(give, sizes[j]-r.available(other)))
			sizes[i], sizes[j] = sizes[i]+take, sizes[j]-take
			give, lack = give-take, lack-take
		}
	}
}

// share is by how much a set grows or shrinks when the limit of all becomes
// another, to remain the same part of it.
func (r *rollout) share(rs *appsv1.ReplicaSet, limit int32) int32 {
	if desired(r.d) == 0 {
		return -replicas(rs)
	}
	before, err := strconv.ParseInt(rs.Annotations[maxAnnotation], 10, 32)
	if err != nil || before <= 0 {
		before = int64(max(r.d.Status.Replicas, 1))
	}
	n := (2*int64(replicas(rs))*int64(limit) + before) / (2 * before) // rounded
	return int32(n) - replicas(rs)
}

// cleanUp gives up old sets beyond the history that the Deployment keeps, once
// the rollout is complete.
func (r *rollout) cleanUp() {
	limit := r.d.Spec.RevisionHistoryLimit
	if limit == nil || !r.complete() {
		return
	}
	history := slices.DeleteFunc(slices.Clone(r.old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	slices.SortStableFunc(history, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revisionOf(a), revisionOf(b)) })
	for _, rs := range history[:max(0, len(history)-int(*limit))] {
		if replicas(rs) == 0 && rs.Status.Replicas == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			r.out.Drop(rs)
		}
	}
}

// complete says that all pods are new, available and as many as desired.
func (r *rollout) complete() bool {
	if r.newest == nil {
		return false
	}
	n := desired(r.d)
	return r.newest.Status.Replicas == n && r.newest.Status.AvailableReplicas == n && total(r.all()) == n
}

func desired(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

func replicas(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

func total(sets []*appsv1.ReplicaSet) int32 {
	var n int32
	for _, rs := range sets {
		n += replicas(rs)
	}
	return n
}

func maxSurge(d *appsv1.Deployment) int32 {
	surge, _ := bounds(d)
	return surge
}

func maxUnavailable(d *appsv1.Deployment) int32 {
	_, unavailable := bounds(d)
	return unavailable
}

// bounds are by how many pods a rolling update may be above and below the
// desired number. As in Kubernetes, a part of a pod is one more above, and none
// below; where both come to nothing, one below, or nothing could ever move.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	n := desired(d)
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType || n == 0 {
		return 0, 0
	}
	quarter := intstr.FromString("25%")
	up, down := &quarter, &quarter
	if ru := d.Spec.Strategy.RollingUpdate; ru != nil {
		if ru.MaxSurge != nil {
			up = ru.MaxSurge
		}
		if ru.MaxUnavailable != nil {
			down = ru.MaxUnavailable
		}
	}
	s, errUp := intstr.GetScaledValueFromIntOrPercent(up, int(n), true)
	u, errDown := intstr.GetScaledValueFromIntOrPercent(down, int(n), false)
	if errUp != nil || errDown != nil {
		s, u = 0, 1 // admission refuses what is neither a number nor a percentage
	}
	if s == 0 && u == 0 {
		u = 1
	}
	return int32(s), min(int32(u), n)
}

func sortByAge(sets []*appsv1.ReplicaSet) {
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(revisionOf(a), revisionOf(b)), cmp.Compare(a.Name, b.Name))
	})
}
