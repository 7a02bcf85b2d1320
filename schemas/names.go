package schemas

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Names builds every subject, bucket and stream name of one cluster. It is the
// only place where they are spelled out. The zero value is the default
// cluster, whose names carry no prefix; several clusters in one NATS account
// each need a prefix of their own.
type Names struct {
	// Prefix is empty or one token of [a-z0-9-]; it leads every name.
	Prefix string
}

// AllNamespaces stands for "no namespace" in keys and subjects: cluster-scoped
// objects are stored under it, and lists and watches use it for all namespaces.
const AllNamespaces = "_"

// API verbs, the second token of an API subject.
const (
	VerbApply  = "apply"
	VerbCreate = "create"
	VerbGet    = "get"
	VerbList   = "list"
	VerbWatch  = "watch"
	VerbUpdate = "update"
	VerbPatch  = "patch"
	VerbDelete = "delete"
	VerbLog    = "log"

	VerbDeleteCollection = "deletecollection"
	// VerbSchema describes: the JSON Schema of one resource, or with
	// AllNamespaces in its place the list of all resources.
	VerbSchema = "schema"

	// Verbs that open a session with a container or pod. The answer names the
	// session, and VerbSend and VerbRecv on the same object carry its bytes.
	VerbExec        = "exec"
	VerbAttach      = "attach"
	VerbPortForward = "portforward"
	VerbCopy        = "copy"
	// VerbSend gives a session bytes or a command, VerbRecv takes what it has.
	VerbSend = "send"
	VerbRecv = "recv"
)

// Subresources: "pods/status" in place of "pods" in a subject.
const (
	SubStatus   = "status"
	SubScale    = "scale"
	SubBinding  = "binding"
	SubEviction = "eviction"
	// SubMetrics is what an object uses now: get and list of pods and nodes, in
	// the form of metrics.k8s.io/v1beta1.
	SubMetrics = "metrics"
)

// Waits says that calls of a verb may wait for something to happen: they are
// bounded apart from the others, and given up when the server stops.
func Waits(verb string) bool {
	switch verb {
	case VerbWatch, VerbLog, VerbRecv, VerbSend:
		return true
	}
	return false
}

// Methods of a node, the last token of a node subject.
const (
	NodeMethodLogs     = "logs"
	NodeMethodImagePut = "image-put"
	NodeMethodImages   = "images"

	// NodeMethodExec to NodeMethodCopy open a session, NodeMethodSend and
	// NodeMethodRecv carry it on; see VerbExec.
	NodeMethodExec        = "exec"
	NodeMethodAttach      = "attach"
	NodeMethodPortForward = "portforward"
	NodeMethodCopy        = "copy"
	NodeMethodSend        = "send"
	NodeMethodRecv        = "recv"
	// NodeMethodStats is what the node and its pods use now.
	NodeMethodStats = "stats"
)

// Headers of messages on the bus.
const (
	// HeaderSignature carries the control plane's signature (base64, Ed25519)
	// over subject, a NUL byte and body of what it tells a node.
	HeaderSignature = "Gantry-Signature"
	// HeaderCluster says to which cluster a node thinks it speaks: what is meant
	// for a cluster that lost its data is not taken in by the one in its place.
	HeaderCluster = "Gantry-Cluster"
	// HeaderResult says what an apply did: created, configured or unchanged.
	HeaderResult = "Gantry-Result"
	// HeaderWarning carries one warning per value.
	HeaderWarning = "Gantry-Warning"
	// HeaderCursor is where the next read of a log goes on.
	HeaderCursor = "Gantry-Cursor"
	// HeaderEOF is "true" when a log has no more to give, ever.
	HeaderEOF = "Gantry-Eof"
	// HeaderUpload, HeaderOffset and HeaderLast frame the pieces of an upload.
	HeaderUpload = "Gantry-Upload"
	HeaderOffset = "Gantry-Offset"
	HeaderLast   = "Gantry-Last"

	// HeaderContentType says what a patch is: one of the Patch constants.
	HeaderContentType = "Content-Type"
	// HeaderOptions carries Kubernetes' options of a write as JSON: a
	// metav1.CreateOptions, UpdateOptions or PatchOptions, and for
	// deletecollection the ListOptions that select (DeleteOptions are the body
	// of a delete).
	HeaderOptions = "Gantry-Options"
	// HeaderRequest is an id that the caller draws for one write and repeats
	// when it asks again: the write then happens once, and the repetition gets
	// the first one's answer.
	HeaderRequest = "Gantry-Request"

	// HeaderSession names a session in VerbSend and VerbRecv. Anyone who may
	// call these on the pod and knows it may use it: it cannot be guessed.
	HeaderSession = "Gantry-Session"
	// HeaderPod is the UID of the pod whose session a send or recv means. The
	// control plane sets it towards the node, which refuses the session of another pod.
	HeaderPod = "Gantry-Pod"
	// HeaderChannel says whose bytes an answer of VerbRecv holds: a Channel constant.
	HeaderChannel = "Gantry-Channel"
	// HeaderWait is how many seconds a VerbRecv waits for something to come.
	HeaderWait = "Gantry-Wait"
	// HeaderMax bounds the body of the answer in bytes.
	HeaderMax = "Gantry-Max"
	// HeaderResize sets the size of a session's terminal: "80x24", columns first.
	HeaderResize = "Gantry-Resize"
	// HeaderClose "true" ends a session and what it runs.
	HeaderClose = "Gantry-Close"
	// HeaderExitCode comes with HeaderEOF where a command has ended.
	HeaderExitCode = "Gantry-Exit-Code"
)

// Values of HeaderContentType. Without the header an object is a merge patch
// and a list a JSON patch.
const (
	PatchJSON      = "application/json-patch+json"
	PatchMerge     = "application/merge-patch+json"
	PatchStrategic = "application/strategic-merge-patch+json"
	PatchApply     = "application/apply-patch+yaml" // JSON is YAML, too
)

// Channels of a session.
const (
	ChannelStdout = "stdout"
	ChannelStderr = "stderr"
	// ChannelError carries the reason why a session ended, as text; with it HeaderEOF.
	ChannelError = "error"
)

func (n Names) subject(tokens ...string) string {
	s := strings.Join(tokens, ".")
	if n.Prefix == "" {
		return s
	}
	return n.Prefix + "." + s
}

func (n Names) bucket(name string) string {
	if n.Prefix == "" {
		return name
	}
	return n.Prefix + "-" + name
}

// ObjectsBucket is the KV bucket of the API objects: what is desired and what
// was reported of it. Keys are ObjectKey.
func (n Names) ObjectsBucket() string { return n.bucket("objects") }

// EventsBucket is the KV bucket of v1 Events, which expire. Keys are ObjectKey.
func (n Names) EventsBucket() string { return n.bucket("events") }

// DesiredBucket is the KV bucket of what each node must run. Keys are
// DesiredPodKey and DesiredNetworkKey; values are PodRecord and NetworkRecord.
func (n Names) DesiredBucket() string { return n.bucket("desired") }

// RoutesBucket is the KV bucket of what every node must route. Keys are
// RouteServiceKey; values are RouteRecord.
func (n Names) RoutesBucket() string { return n.bucket("routes") }

// ReservationsBucket is the KV bucket of things given out once, such as
// cluster IPs. Keys are ReservationKey; the value is a Reservation.
func (n Names) ReservationsBucket() string { return n.bucket("reservations") }

// ClusterBucket is the KV bucket of facts about the cluster itself.
// The key ClusterKey holds a ClusterRecord.
func (n Names) ClusterBucket() string { return n.bucket("cluster") }

// ClusterKey is the one key of the cluster bucket.
const ClusterKey = "cluster"

// HealthStream is the stream of what the nodes report.
func (n Names) HealthStream() string { return n.bucket("health") }

// ObjectKey is the key of one API object: <resource>.<namespace or _>.<name>.
// The name comes last because it may hold dots.
func ObjectKey(resource, namespace, name string) string {
	return resource + "." + namespaceToken(namespace) + "." + escapeName(name)
}

// ParseObjectKey takes an ObjectKey apart; namespace is empty for
// cluster-scoped objects.
func ParseObjectKey(key string) (resource, namespace, name string, err error) {
	parts := strings.SplitN(key, ".", 3)
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return "", "", "", fmt.Errorf("key %q is not <resource>.<namespace or _>.<name>", key)
	}
	name, err = unescapeName(parts[2])
	if err != nil {
		return "", "", "", fmt.Errorf("key %q: %w", key, err)
	}
	// An object has one key: of two the store would see one, and which is chance.
	if name != parts[2] && escapeName(name) != parts[2] {
		return "", "", "", fmt.Errorf("key %q: the name is to be written as %s", key, escapeName(name))
	}
	namespace = parts[1]
	if namespace == AllNamespaces {
		namespace = ""
	}
	return parts[0], namespace, name, nil
}

func namespaceToken(namespace string) string {
	if namespace == "" {
		return AllNamespaces
	}
	return namespace
}

// NodeToken is a node's name as one subject token. Node names may hold dots
// but never underscores, so the mapping can be undone.
func NodeToken(node string) string { return strings.ReplaceAll(node, ".", "_") }

// NodeFromToken undoes NodeToken.
func NodeFromToken(token string) string { return strings.ReplaceAll(token, "_", ".") }

// DesiredPodKey is the key of one pod in the desired bucket.
func DesiredPodKey(node, namespace, name string) string {
	return NodeToken(node) + ".pod." + namespace + "." + escapeName(name)
}

// DesiredNetworkKey is the key of a node's network in the desired bucket.
func DesiredNetworkKey(node string) string { return NodeToken(node) + ".network" }

// RouteServiceKey is the key of one Service in the routes bucket.
func RouteServiceKey(namespace, name string) string {
	return "service." + namespace + "." + escapeName(name)
}

// ReservationKey is the key of one reservation, such as ("clusterip", "10.96.0.1").
func ReservationKey(kind, value string) string { return kind + "." + escapeName(value) }

// KVSubject is the subject on which a value of a KV bucket is published; a
// plain subscription to it hears every change.
func KVSubject(bucket, key string) string { return "$KV." + bucket + "." + key }

// DesiredSubjects is the wildcard of everything the control plane tells one node alone.
func (n Names) DesiredSubjects(node string) string {
	return KVSubject(n.DesiredBucket(), NodeToken(node)+".>")
}

// RoutesSubjects is the wildcard of everything the control plane tells every node.
func (n Names) RoutesSubjects() string { return KVSubject(n.RoutesBucket(), ">") }

// Sync is the request subject on which a node asks for its state and shows
// that it lives. The message is a SyncRequest, the answer a SyncReply.
func (n Names) Sync(node string) string { return n.subject("sync", NodeToken(node)) }

// SyncAll is the wildcard over Sync.
func (n Names) SyncAll() string { return n.subject("sync", "*") }

// HealthPod is the subject of a PodHealth.
func (n Names) HealthPod(node, namespace, name string) string {
	return n.subject("health", NodeToken(node), "pod", namespace, escapeName(name))
}

// HealthNode is the subject of a NodeHealth.
func (n Names) HealthNode(node string) string {
	return n.subject("health", NodeToken(node), "node")
}

// HealthEvent is the subject of a PodEvent.
func (n Names) HealthEvent(node, namespace, name string) string {
	return n.subject("health", NodeToken(node), "event", namespace, escapeName(name))
}

// HealthOfNode is the wildcard of all that one node may report.
func (n Names) HealthOfNode(node string) string {
	return n.subject("health", NodeToken(node), ">")
}

// HealthAll is the wildcard of all health; the health stream captures it.
func (n Names) HealthAll() string { return n.subject("health", ">") }

// Node is the request subject of one method of a node.
func (n Names) Node(node, method string) string {
	return n.subject("node", NodeToken(node), method)
}

// NodeMethods is the wildcard of all methods of one node.
func (n Names) NodeMethods(node string) string { return n.subject("node", NodeToken(node), ">") }

// API is the request subject of one call. resource may name a subresource as
// "deployments/scale". namespace is empty for cluster-scoped objects and, in
// lists and watches, for all namespaces. name is empty in lists and watches.
func (n Names) API(verb, resource, namespace, name string) string {
	if name == "" {
		return n.subject("api", verb, resource, namespaceToken(namespace))
	}
	return n.subject("api", verb, resource, namespaceToken(namespace), escapeName(name))
}

// APIVerb is the wildcard of one verb.
func (n Names) APIVerb(verb string) string { return n.subject("api", verb, ">") }

// APIAll is the wildcard of the whole API.
func (n Names) APIAll() string { return n.subject("api", ">") }

// Call is an API subject taken apart.
type Call struct {
	Verb        string
	Resource    string
	Subresource string // empty for the object itself
	Namespace   string // empty for cluster scope or all namespaces
	Name        string // empty in lists and watches
}

// ParseAPI takes an API subject apart.
func (n Names) ParseAPI(subject string) (Call, error) {
	if !utf8.ValidString(subject) {
		return Call{}, fmt.Errorf("subject %q is not valid UTF-8", subject)
	}
	rest := subject
	if n.Prefix != "" {
		var ok bool
		if rest, ok = strings.CutPrefix(subject, n.Prefix+"."); !ok {
			return Call{}, fmt.Errorf("subject %q lacks the prefix %q", subject, n.Prefix)
		}
	}
	parts := strings.SplitN(rest, ".", 5)
	if len(parts) < 4 || parts[0] != "api" {
		return Call{}, fmt.Errorf("subject %q is not api.<verb>.<resource>.<namespace or _>[.<name>]", subject)
	}
	for _, p := range parts {
		if p == "" {
			return Call{}, fmt.Errorf("subject %q has an empty token", subject)
		}
	}
	c := Call{Verb: parts[1], Resource: parts[2], Namespace: parts[3]}
	c.Resource, c.Subresource, _ = strings.Cut(c.Resource, "/")
	if c.Namespace == AllNamespaces {
		c.Namespace = ""
	}
	if len(parts) == 5 {
		name, err := unescapeName(parts[4])
		if err != nil {
			return Call{}, fmt.Errorf("subject %q: %w", subject, err)
		}
		c.Name = name
	}
	return c, nil
}

// escapeName writes every byte that a NATS key cannot hold as =XX. Names of
// Kubernetes objects need it only outside DNS names, such as RBAC's colons.
func escapeName(name string) string {
	safe := func(i int) bool {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			return true
		case c == '.':
			// A dot at an end or beside another would make an empty token.
			return i > 0 && i < len(name)-1 && name[i-1] != '.'
		}
		return false
	}
	var b strings.Builder
	for i := range len(name) {
		if safe(i) {
			b.WriteByte(name[i])
		} else {
			fmt.Fprintf(&b, "=%02X", name[i])
		}
	}
	return b.String()
}

// unescapeName undoes escapeName. A client may escape more than is needed.
func unescapeName(s string) (string, error) {
	// JSON holds no such name: what is stored under it would be another object.
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("name %q is not valid UTF-8", s)
	}
	if !strings.Contains(s, "=") {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("name %q ends within an escape", s)
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", fmt.Errorf("name %q has a bad escape %q: want = and two hexadecimal digits", s, s[i:i+3])
		}
		b.WriteByte(byte(c))
		i += 2
	}
	if !utf8.ValidString(b.String()) {
		return "", fmt.Errorf("name %q is not valid UTF-8", s)
	}
	return b.String(), nil
}
