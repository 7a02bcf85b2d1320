package bus

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// decodeObject reads an object as it is stored. Pods share what is alike among
// them: those of one template differ in a few lines, and a view of a hundred
// thousand would hold the rest of each as often. What is in a view is never
// changed in place, so nobody can tell.
func decodeObject(kind schemas.Kind, data []byte) (schemas.Object, error) {
	o := kind.New()
	var err error
	if pod, ok := o.(*corev1.Pod); ok {
		err = decodePod(data, pod)
	} else {
		err = json.Unmarshal(data, o)
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// podParts is a Pod whose larger parts are left as they are written. A field of
// an outer struct takes the place of an embedded one's of the same name.
type podParts struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metaParts        `json:"metadata"`
	Spec            specParts        `json:"spec"`
	Status          corev1.PodStatus `json:"status"`
}

type metaParts struct {
	metav1.ObjectMeta `json:",inline"`
	Labels            json.RawMessage `json:"labels"`
	OwnerReferences   json.RawMessage `json:"ownerReferences"`
}

type specParts struct {
	corev1.PodSpec            `json:",inline"`
	Volumes                   json.RawMessage `json:"volumes"`
	InitContainers            json.RawMessage `json:"initContainers"`
	Containers                json.RawMessage `json:"containers"`
	NodeSelector              json.RawMessage `json:"nodeSelector"`
	SecurityContext           json.RawMessage `json:"securityContext"`
	Affinity                  json.RawMessage `json:"affinity"`
	Tolerations               json.RawMessage `json:"tolerations"`
	TopologySpreadConstraints json.RawMessage `json:"topologySpreadConstraints"`
}

func decodePod(data []byte, pod *corev1.Pod) error {
	var p podParts
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	meta, spec := &p.Metadata.ObjectMeta, &p.Spec.PodSpec
	err := firstError(
		part(p.Metadata.Labels, &meta.Labels),
		part(p.Metadata.OwnerReferences, &meta.OwnerReferences),
		part(p.Spec.Volumes, &spec.Volumes),
		part(p.Spec.InitContainers, &spec.InitContainers),
		part(p.Spec.Containers, &spec.Containers),
		part(p.Spec.NodeSelector, &spec.NodeSelector),
		part(p.Spec.SecurityContext, &spec.SecurityContext),
		part(p.Spec.Affinity, &spec.Affinity),
		part(p.Spec.Tolerations, &spec.Tolerations),
		part(p.Spec.TopologySpreadConstraints, &spec.TopologySpreadConstraints),
	)
	*pod = corev1.Pod{TypeMeta: p.TypeMeta, ObjectMeta: *meta, Spec: *spec, Status: p.Status}
	return err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// part decodes one part, or takes the value that the same bytes gave before.
func part[T any](data json.RawMessage, into *T) error {
	if len(data) == 0 || bytes.Equal(data, []byte("null")) {
		return nil
	}
	// Not a fast hash: with one that can be made to collide, a user could put
	// his containers into somebody else's pod.
	key := partKey{sum: sha256.Sum256(data), kind: any((*T)(nil))}
	if have, ok := parts.get(key); ok {
		*into = have.(T)
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return err
	}
	parts.put(key, *into, len(data))
	return nil
}

type partKey struct {
	sum  [sha256.Size]byte
	kind any // a typed nil pointer: what the part was decoded into
}

// generation bounds how many bytes of JSON the parts of one generation come
// from; decoded they take some four times as much.
const generation = 1 << 20

// parts are the values that were decoded lately, in two generations: when the
// younger is full, it becomes the older, and what nobody asked for since is
// forgotten.
var parts = &partTable{young: map[partKey]any{}}

type partTable struct {
	mu         sync.Mutex
	young, old map[partKey]any
	size       int
}

func (t *partTable) get(k partKey) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.young[k]
	if !ok {
		if v, ok = t.old[k]; ok {
			t.young[k] = v
			delete(t.old, k)
		}
	}
	return v, ok
}

func (t *partTable) put(k partKey, v any, size int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.size += size; t.size > generation {
		t.old, t.young, t.size = t.young, map[partKey]any{}, size
	}
	t.young[k] = v
}
