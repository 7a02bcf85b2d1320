package plane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/controlplane/nodes"
	"gantry.dev/schemas"
)

// sync answers a node: first whether it may speak for its name, then what it
// misses.
func (p *Plane) sync(ctx context.Context, req schemas.SyncRequest) schemas.SyncReply {
	revision, err := p.nodes.Admit(ctx, req)
	if err == nil {
		var reply schemas.SyncReply
		if reply, err = p.publisher.Sync(ctx, req, revision); err == nil {
			return reply
		}
	}
	status := metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable, Message: err.Error(),
	}
	var held *nodes.HeldError
	if errors.As(err, &held) {
		status.Code, status.Reason = http.StatusConflict, metav1.StatusReasonConflict
		p.log.Warn().Str("node", req.Node).Str("instance", req.Instance).Str("host", req.Host).Err(err).Msg("refuse agent")
	}
	return schemas.SyncReply{Node: req.Node, Nonce: req.Nonce, Error: &status}
}

// fetchLogs asks a node for one piece of a log.
func (p *Plane) fetchLogs(ctx context.Context, node string, req schemas.LogRequest) ([]byte, map[string][]string, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, nil, fmt.Errorf("ask node %s for logs: %w", node, err)
	}
	answer, header, err := p.conn.NodeRequest(ctx, node, schemas.NodeMethodLogs, nil, body)
	if err == nil {
		return answer, header, nil
	}
	// What the node itself refuses with reaches the caller as it is.
	var refused apierrors.APIStatus
	if errors.As(err, &refused) {
		return nil, nil, err
	}
	return nil, nil, fmt.Errorf("ask node %s for logs: %w", node, err)
}
