package schemas

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ClusterRecord is what a cluster is known by. It is written once.
type ClusterRecord struct {
	ID string `json:"id"`
	// Signer is the public key (nkey, account type) that signs what nodes are told.
	Signer      string `json:"signer"`
	PodCIDR     string `json:"podCIDR"`
	ServiceCIDR string `json:"serviceCIDR"`
}

// Reservation says to whom something was given.
type Reservation struct {
	Key string    `json:"key"` // ObjectKey of the holder
	UID types.UID `json:"uid"`
}

// FeedPos is a place in a feed: what the publisher tells in order. Epoch is
// new with each publisher's life; Seq counts from 1 within it. A listener that
// sees a new epoch or a gap in Seq has missed something and asks again (Sync).
type FeedPos struct {
	Epoch string `json:"epoch,omitempty"`
	Seq   uint64 `json:"seq,omitempty"`
}

// PodRecord is what a node is told of one pod, as JSON in the desired bucket.
type PodRecord struct {
	ClusterID string  `json:"clusterID"`
	Node      string  `json:"node"`
	Feed      FeedPos `json:"feed"`
	// Revision is the resourceVersion of the Pod that this was compiled from;
	// for one pod it never goes backwards.
	Revision  uint64    `json:"revision"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	// Removed is the last word about a pod: the object is gone, and so must be
	// whatever runs for it. Pod is nil then.
	Removed bool        `json:"removed,omitempty"`
	Pod     *corev1.Pod `json:"pod,omitempty"`
}

// RouteRecord is what every node is told of one Service, as JSON in the routes bucket.
type RouteRecord struct {
	ClusterID  string      `json:"clusterID"`
	Feed       FeedPos     `json:"feed"`
	Revision   uint64      `json:"revision"` // the newest resourceVersion that went into it
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	UID        types.UID   `json:"uid"`
	Removed    bool        `json:"removed,omitempty"`
	ClusterIPs []string    `json:"clusterIPs,omitempty"`
	Ports      []RoutePort `json:"ports,omitempty"`
}

// RoutePort is one port of a Service and the ready endpoints behind it.
type RoutePort struct {
	Name      string          `json:"name,omitempty"`
	Protocol  corev1.Protocol `json:"protocol"`
	Port      uint16          `json:"port"`
	Endpoints []RouteEndpoint `json:"endpoints"`
}

// RouteEndpoint is one ready address.
type RouteEndpoint struct {
	IP   string `json:"ip"`
	Port uint16 `json:"port"`
	Node string `json:"node,omitempty"`
}

// NetworkRecord is a node's part in the cluster's network.
type NetworkRecord struct {
	PodCIDR        string `json:"podCIDR"`        // this node's own range
	ClusterPodCIDR string `json:"clusterPodCIDR"` // all nodes' ranges
	ServiceCIDR    string `json:"serviceCIDR"`
}

// SyncRequest is a node asking for what it misses. Sent at start, on a gap,
// and every HeartbeatSeconds as the sign of life.
type SyncRequest struct {
	Node string `json:"node"`
	// Instance tells two agents that use one node name apart: it is drawn once
	// per state directory.
	Instance string `json:"instance"`
	Host     string `json:"host,omitempty"` // the machine's own host name, for messages
	// Nonce comes back in the answer, so that an old answer cannot be replayed.
	Nonce  string  `json:"nonce"`
	Pods   FeedPos `json:"pods"`
	Routes FeedPos `json:"routes"`
	// PodsAfter and RoutesAfter go on with a snapshot after this key
	// (namespace/name); empty asks from the start.
	PodsAfter   string `json:"podsAfter,omitempty"`
	RoutesAfter string `json:"routesAfter,omitempty"`
}

// SyncReply is the whole message that answers a SyncRequest; it is signed.
type SyncReply struct {
	ClusterID string `json:"clusterID"`
	Node      string `json:"node"`
	Nonce     string `json:"nonce"`
	// Error refuses the node, for example because another instance holds the name.
	Error            *metav1.Status `json:"error,omitempty"`
	HeartbeatSeconds int            `json:"heartbeatSeconds,omitempty"`
	// Revision is the newest revision of the objects bucket that the answer
	// knows of; going backwards means that the control plane lost data.
	Revision uint64         `json:"revision"`
	Network  *NetworkRecord `json:"network,omitempty"`
	// Pods and Routes are nil where the node's position is already the newest.
	Pods   *PodSnapshot   `json:"pods,omitempty"`
	Routes *RouteSnapshot `json:"routes,omitempty"`
}

// PodSnapshot is all that a node must run, or one page of it.
type PodSnapshot struct {
	Pos     FeedPos     `json:"pos"`
	Records []PodRecord `json:"records"` // ordered by namespace/name
	Next    string      `json:"next,omitempty"`
}

// RouteSnapshot is all that a node must route, or one page of it.
type RouteSnapshot struct {
	Pos     FeedPos       `json:"pos"`
	Records []RouteRecord `json:"records"` // ordered by namespace/name
	Next    string        `json:"next,omitempty"`
}

// PodHealth is what a node says of one pod: always the whole truth, never a delta.
type PodHealth struct {
	Node string `json:"node"`
	// Instance is the agent's, as in SyncRequest: reports of one that does not
	// hold the name are not taken in. Empty counts as the holder's.
	Instance  string    `json:"instance,omitempty"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	// Revision is that of the newest PodRecord the node has acted upon.
	Revision uint64 `json:"revision"`
	// Seq grows with each report of this node about this pod (nanoseconds since
	// the epoch, or the last one plus one where the clock went back).
	Seq        uint64           `json:"seq"`
	ObservedAt time.Time        `json:"observedAt"`
	Status     corev1.PodStatus `json:"status"`
	// Gone says that nothing of the pod is left on the node: no process, no
	// namespace, no address. Only then may the object be removed.
	Gone bool `json:"gone,omitempty"`
}

// NodeHealth is what a node says of itself.
type NodeHealth struct {
	Node       string            `json:"node"`
	Instance   string            `json:"instance"`
	Seq        uint64            `json:"seq"`
	ObservedAt time.Time         `json:"observedAt"`
	Labels     map[string]string `json:"labels,omitempty"`
	Status     corev1.NodeStatus `json:"status"` // capacity, allocatable, addresses, nodeInfo, conditions, images
	Stopping   bool              `json:"stopping,omitempty"`
}

// PodEvent is one thing that happened to a pod on its node; the control plane
// makes a v1 Event of it.
type PodEvent struct {
	Node      string    `json:"node"`
	Instance  string    `json:"instance,omitempty"` // as in PodHealth
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	UID       types.UID `json:"uid"`
	Container string    `json:"container,omitempty"`
	Type      string    `json:"type"` // Normal or Warning
	Reason    string    `json:"reason"`
	Message   string    `json:"message"`
	Time      time.Time `json:"time"`
}

// LogRequest asks a node for one piece of a container's log. The answer's body
// is raw lines as stored ("<RFC 3339 time> stdout|stderr F|P <text>"), its
// headers say where to go on (HeaderCursor) and whether anything can still
// come (HeaderEOF). Nothing is kept between two requests, so a reader may be
// slow, vanish, or change the server it asks through.
type LogRequest struct {
	Namespace string     `json:"namespace"`
	Pod       string     `json:"pod"`
	UID       types.UID  `json:"uid,omitempty"`
	Container string     `json:"container,omitempty"` // may be empty where the pod has one
	Previous  bool       `json:"previous,omitempty"`
	TailLines *int64     `json:"tailLines,omitempty"`
	SinceTime *time.Time `json:"sinceTime,omitempty"`
	// Cursor is empty at first, then what the last answer gave.
	Cursor string `json:"cursor,omitempty"`
	// WaitSeconds lets the node hold the answer back until there is more, at
	// most 20 s.
	WaitSeconds int `json:"waitSeconds,omitempty"`
}

// WatchReply is one piece of a watch. A watch is a chain of requests, each
// from the resourceVersion that the last answer gave, so it survives the loss
// of the server that it went through and costs nothing while nobody reads.
type WatchReply struct {
	Items           []metav1.WatchEvent `json:"items"`
	ResourceVersion string              `json:"resourceVersion"`
}

// NodeCredentials is the file that lets an agent be one node and nothing else.
type NodeCredentials struct {
	Node      string   `json:"node"`
	ClusterID string   `json:"clusterID"`
	URLs      []string `json:"urls"`
	Seed      string   `json:"seed"` // nkey user seed: secret
	Signer    string   `json:"signer"`
	Prefix    string   `json:"prefix,omitempty"`
	CA        string   `json:"ca,omitempty"` // PEM; empty on loopback
}

// UserCredentials is the file that lets a person or program drive the cluster.
type UserCredentials struct {
	User string   `json:"user"`
	URLs []string `json:"urls"`
	// Websockets are the same for websocket clients; empty without such a listener.
	Websockets []string `json:"websockets,omitempty"`
	Seed       string   `json:"seed"`
	Prefix     string   `json:"prefix,omitempty"`
	CA         string   `json:"ca,omitempty"`
}

// A session carries bytes between a client and a pod: a command, a container's
// own streams, a TCP connection, or a copy of files. It lives on the pod's node,
// and everything about it is a request with an answer, so the reader sets the
// pace, nothing is lost with a control plane that serves it, and no answer is
// larger than was asked for.
//
// The client opens it with one of the requests below and an id of its own
// drawing (repeating the request with the same id opens nothing new), and gets
// a SessionReply. Then:
//
//   - recv: HeaderSession, HeaderCursor (how many bytes were received in all; what
//     lies before is forgotten), HeaderWait, HeaderMax; no body. The answer is raw
//     bytes of one channel (HeaderChannel) and the next HeaderCursor; empty when
//     nothing came in time. HeaderEOF: nothing more will come; HeaderExitCode
//     says how a command ended.
//   - send: HeaderSession, HeaderOffset (how many bytes were sent before), the
//     bytes as body; HeaderLast "true" closes the input behind them. The answer's
//     HeaderOffset says how many the node has in all: fewer than were sent where
//     its buffer is full, and the rest is sent again. HeaderResize and HeaderClose
//     are sent the same way.
//
// A session that nobody asks about for SessionIdleSeconds ends, and what it runs is killed.

// SessionIdleSeconds is how long a session waits for its client.
const SessionIdleSeconds = 60

// MaxSessionPiece bounds the body of one send or recv in bytes. It is small so
// that what shares the node's connection waits for little.
const MaxSessionPiece = 128 << 10

// ExecRequest opens a session that runs a command in a container.
type ExecRequest struct {
	Session   string    `json:"session"` // drawn by the client: 16 to 64 of [A-Za-z0-9_-]
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
	Container string    `json:"container,omitempty"` // empty: the default one
	Command   []string  `json:"command"`
	// Stdin opens the command's input; without it the input is empty.
	Stdin bool `json:"stdin,omitempty"`
	// TTY gives the command a terminal; stderr comes on stdout then.
	TTY     bool   `json:"tty,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
}

// AttachRequest opens a session with a container's own streams, from now on.
type AttachRequest struct {
	Session   string    `json:"session"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
	Container string    `json:"container,omitempty"`
	// Stdin needs a container with stdin: true.
	Stdin   bool   `json:"stdin,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
}

// PortForwardRequest opens a session that is one TCP connection to a port of
// the pod, made from within its network: what is sent goes in, ChannelStdout is
// what comes back.
type PortForwardRequest struct {
	Session   string    `json:"session"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
	Port      uint16    `json:"port"`
}

// CopyRequest opens a session that carries a tar stream out of a container's
// file system (ChannelStdout) or, with Write, into it. Paths never leave it.
type CopyRequest struct {
	Session   string    `json:"session"`
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
	Container string    `json:"container,omitempty"`
	// Path is what to read, or the directory to unpack into.
	Path  string `json:"path"`
	Write bool   `json:"write,omitempty"`
}

// SessionReply is the answer to each of the requests above.
type SessionReply struct {
	Session   string `json:"session"`
	Container string `json:"container,omitempty"` // which one was taken
}

// NodeStats is the answer of NodeMethodStats.
type NodeStats struct {
	Time metav1.Time `json:"time"`
	// WindowSeconds is the time over which CPU was measured.
	WindowSeconds float64    `json:"windowSeconds"`
	Node          Usage      `json:"node"`
	Pods          []PodStats `json:"pods,omitempty"`
}

// PodStats is what the containers of one pod use.
type PodStats struct {
	Namespace  string           `json:"namespace"`
	Name       string           `json:"name"`
	UID        types.UID        `json:"uid"`
	Containers map[string]Usage `json:"containers,omitempty"`
}

// Usage is CPU in nanoseconds per second and memory in bytes (the working set).
type Usage struct {
	NanoCPUs    uint64 `json:"nanoCPUs"`
	MemoryBytes uint64 `json:"memoryBytes"`
}
