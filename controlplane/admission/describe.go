package admission

import (
	"encoding/json"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"gantry.dev/schemas"
)

// schema describes what the API takes: the JSON Schema of one resource, or with
// AllNamespaces in its place the list of all of them, those included that are
// refused.
func (a *Admission) schema(call schemas.Call, body []byte) (reply, error) {
	if len(body) > 0 || call.Subresource != "" || call.Namespace != "" || call.Name != "" {
		return reply{}, apierrors.NewBadRequest("schema takes no body, and as subject api.schema.<resource or _>._")
	}
	if call.Resource == schemas.AllNamespaces {
		out, err := json.Marshal(schemas.APIResources())
		return reply{body: out}, err
	}
	if _, ok := schemas.KindByResource(call.Resource); !ok {
		return reply{}, unknownResource(call.Resource)
	}
	out, err := schemas.JSONSchema(call.Resource)
	return reply{body: out}, err
}
