package deployment

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gantry.dev/controlplane/reconcile"
	"gantry.dev/schemas"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations that kubectl and other tools know.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"
	lastApplied        = "kubectl.kubernetes.io/last-applied-configuration"
)

const hashLabel = appsv1.DefaultDeploymentUniqueLabelKey

// sameTemplate compares without the label that tells the sets apart.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return apiequality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	t = t.DeepCopy()
	delete(t.Labels, hashLabel)
	return t
}

// templateHash names a template. The JSON form is hashed: fields that a later
// version knows and this template does not use leave it as it is. collision
// tells apart two templates of one hash.
func templateHash(t *corev1.PodTemplateSpec, collision int) string {
	data, err := json.Marshal(withoutHash(t))
	if err != nil {
		panic(err) // an API type that came from JSON
	}
	if collision == 0 {
		return reconcile.Hash(10, string(data))
	}
	return reconcile.Hash(10, string(data), strconv.Itoa(collision))
}

// ensureNewest makes the set of the Deployment's template where there is none,
// with no pods yet. It is false where the name is still held by a set that is
// being deleted; that set's end wakes the Deployment.
func (r *rollout) ensureNewest() bool {
	if r.newest != nil {
		return true
	}
	name, hash, free := r.freeName()
	if !free {
		return false
	}
	r.newest = r.newSet(name, hash)
	r.out.Want = append(r.out.Want, r.newest)
	return true
}

// freeName is the name of the set that is to be made. Of two templates with
// one hash the second counts on until it finds a name; a set that is being
// deleted is waited for.
func (r *rollout) freeName() (name, hash string, free bool) {
	for collision := 0; ; collision++ {
		hash = templateHash(&r.d.Spec.Template, collision)
		name = r.d.Name + "-" + hash
		holder, ok := r.view.Get(schemas.ReplicaSets, r.d.Namespace, name).(*appsv1.ReplicaSet)
		if !ok {
			return name, hash, true
		}
		if holder.DeletionTimestamp != nil {
			return "", "", false
		}
	}
}

func (r *rollout) newSet(name, hash string) *appsv1.ReplicaSet {
	t := *r.d.Spec.Template.DeepCopy()
	t.Labels = with(t.Labels, hashLabel, hash)
	selector := r.d.Spec.Selector.DeepCopy()
	selector.MatchLabels = with(selector.MatchLabels, hashLabel, hash)
	none := int32(0)
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       r.d.Namespace,
			Name:            name,
			Labels:          maps.Clone(t.Labels),
			OwnerReferences: []metav1.OwnerReference{owner(r.d)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: &none, MinReadySeconds: r.d.Spec.MinReadySeconds, Selector: selector, Template: t},
	}
	rs.SetGroupVersionKind(appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))
	return rs
}

// annotateRevision gives the newest set the highest revision, hands it the
// Deployment's annotations, and writes the revision on the Deployment, where
// it says which rollout its conditions speak of.
func (r *rollout) annotateRevision() {
	rs := r.newest
	if rs == nil {
		return
	}
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	own := []string{revisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation, lastApplied}
	for k, v := range r.d.Annotations {
		if !slices.Contains(own, k) {
			rs.Annotations[k] = v
		}
	}
	rs.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
	had := revisionOf(rs)
	revision := max(had, 1)
	for _, old := range r.old {
		revision = max(revision, revisionOf(old)+1)
	}
	if had != revision {
		if had > 0 { // rolled back to: it keeps the numbers that it had
			past := strings.Split(rs.Annotations[historyAnnotation], ",")
			past = slices.DeleteFunc(append(past, itoa(had)), func(s string) bool { return s == "" })
			rs.Annotations[historyAnnotation] = strings.Join(past, ",")
		}
		rs.Annotations[revisionAnnotation] = itoa(revision)
	}
	r.d.Annotations = with(r.d.Annotations, revisionAnnotation, itoa(revision))
}

// annotateSizes writes on the sets that have pods for which size of the
// Deployment their own was decided; scaled compares it.
func (r *rollout) annotateSizes() {
	for _, rs := range r.all() {
		if replicas(rs) == 0 && rs != r.newest {
			continue
		}
		rs.Annotations = with(rs.Annotations, desiredAnnotation, itoa(desired(r.d)))
		rs.Annotations[maxAnnotation] = itoa(desired(r.d) + maxSurge(r.d))
	}
}

func revisionOf(rs *appsv1.ReplicaSet) int64 {
	n, err := strconv.ParseInt(rs.Annotations[revisionAnnotation], 10, 64)
	if err != nil {
		return 0 // an adopted set has none
	}
	return n
}

func with(m map[string]string, k, v string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

func itoa[T int32 | int64](n T) string { return strconv.FormatInt(int64(n), 10) }
