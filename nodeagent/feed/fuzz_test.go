package feed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// script answers with one line after the other.
type script struct{ lines [][]byte }

func (s *script) Sync(_ context.Context, req schemas.SyncRequest) (schemas.SyncReply, error) {
	var reply schemas.SyncReply
	if len(s.lines) == 0 {
		return reply, errors.New("no more is said")
	}
	line := s.lines[0]
	s.lines = s.lines[1:]
	if err := json.Unmarshal(line, &reply); err != nil {
		return reply, err
	}
	reply.Node, reply.Nonce, reply.ClusterID = req.Node, req.Nonce, "c1"
	return reply, nil
}

// FuzzFeed hears records and is answered with whatever a control plane could
// sign: it ends, sees only pods of its own node and cluster, and never takes the
// word of a control plane that went backwards for the end of a pod.
func FuzzFeed(f *testing.F) {
	f.Add([]byte(`{"revision":7,"pods":{"pos":{"epoch":"e","seq":3},"records":[{"clusterID":"c1","node":"n1","uid":"a","namespace":"d","name":"a"}],"next":"d/a"}}
{"revision":7,"pods":{"pos":{"epoch":"e","seq":4},"records":[{"clusterID":"c1","node":"n2","uid":"b"}]},"routes":{"pos":{"epoch":"e","seq":1},"records":[{"clusterID":"c1","name":"web"}]}}`),
		[]byte(`{"clusterID":"c1","node":"n1","uid":"a","feed":{"epoch":"e","seq":4}}`))
	f.Add([]byte(`{"revision":1,"pods":{"pos":{},"records":null}}`), []byte(`{"clusterID":"c1","node":"n1","uid":"z","removed":true,"feed":{"epoch":"f","seq":18446744073709551615}}`))
	f.Add([]byte(`{"error":{"reason":"Conflict","message":"another holds the name"}}`), []byte(`{}`))
	f.Add([]byte(`{"revision":101,"heartbeatSeconds":9223372036854775807,"network":{},"pods":{"pos":{"epoch":"e"},"next":"x"}}
{"routes":{}}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, replies, records []byte) {
		_, n, client := pair()
		client.conn = &script{lines: bytes.Split(replies, []byte("\n"))}
		n.revision = 5
		for _, uid := range []types.UID{"a", "b", "c", "d"} {
			n.pods[uid] = true
		}
		for _, line := range bytes.Split(records, []byte("\n")) {
			var p schemas.PodRecord
			if json.Unmarshal(line, &p) == nil {
				client.Pod(p)
			}
			var r schemas.RouteRecord
			if json.Unmarshal(line, &r) == nil {
				client.Route(r)
			}
		}
		for range 3 {
			before, absent := n.revision, len(n.absent)
			heartbeat, err := client.sync(t.Context())
			if err == nil && heartbeat <= 0 {
				t.Errorf("the next sign of life is due in %v", heartbeat)
			}
			if n.revision < before {
				t.Errorf("revision %d after %d", n.revision, before)
			}
			var first schemas.SyncReply
			line, _, _ := bytes.Cut(replies, []byte("\n"))
			if json.Unmarshal(line, &first) == nil && first.Revision < before && len(n.absent) > absent {
				t.Errorf("pods %v went by the word of revision %d after %d", n.absent, first.Revision, before)
			}
			replies = bytes.TrimPrefix(replies[len(line):], []byte("\n"))
			if err != nil {
				return
			}
		}
	})
}
