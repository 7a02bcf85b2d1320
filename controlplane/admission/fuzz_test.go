package admission

import (
	"encoding/json"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/schemas"
)

// known fails where an error is none that the API gives: each refusal has a
// code, and none is an internal error.
func known(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if s := statusOf(err); s.Code < 400 || s.Code >= 500 {
		t.Errorf("%d %s: %s", s.Code, s.Reason, s.Message)
	}
}

// stored fails where what was made of an object could not be read again.
func stored(t *testing.T, o schemas.Object) {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := schemas.Decode(data); err != nil && len(data) <= schemas.MaxObjectBytes {
		t.Errorf("what was taken is not read again: %v", err)
	}
}

func FuzzPatch(f *testing.F) {
	docs := schemas.DecodeAll([]byte(web))
	schemas.Default(docs[0].Object)
	doc, err := json.Marshal(docs[0].Object)
	if err != nil {
		f.Fatal(err)
	}
	kinds := []string{"", schemas.PatchJSON, schemas.PatchMerge, schemas.PatchStrategic}
	for i, seed := range []string{
		`{"metadata":{"labels":{"a":null,"b":"c"}}}`,
		`[{"op":"add","path":"/metadata/labels/x","value":"1"},{"op":"copy","from":"/spec","path":"/spec/template"},{"op":"move","from":"/metadata","path":"/metadata/labels"},{"op":"test","path":"/spec/replicas","value":2},{"op":"remove","path":"/spec/template/spec/containers/-1"}]`,
		`{"spec":{"template":{"spec":{"containers":[{"name":"web","$patch":"delete"},{"name":"b"}],"$setElementOrder/containers":[{"name":"b"}],"$retainKeys":["containers"]}}}}`,
		`{"metadata":{"$deleteFromPrimitiveList/finalizers":["x"],"finalizers":["y"]},"spec":{"$patch":"replace"}}`,
		`[]`, `{}`, `null`, `[null]`, `[{"op":null,"path":null}]`,
	} {
		f.Add(uint8(i), []byte(seed))
	}
	deployments, _ := schemas.KindByResource(schemas.Deployments)
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		p, err := readPatch(map[string][]string{schemas.HeaderContentType: {kinds[int(kind)%len(kinds)]}}, body)
		if known(t, err); err != nil || p.kind == types.ApplyPatchType {
			return
		}
		out, err := p.apply(t.Context(), doc, deployments.New())
		if known(t, err); err != nil {
			return
		}
		o, err := fromJSON(deployments, out)
		if known(t, err); err != nil {
			return
		}
		known(t, sameUID(deployments, o, docs[0].Object))
		stored(t, o)
	})
}

func FuzzServerSideApply(f *testing.F) {
	docs := schemas.DecodeAll([]byte(web))
	schemas.Default(docs[0].Object)
	for _, seed := range []string{
		web,
		`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","finalizers":["a"]},"spec":{"template":{"spec":{"containers":[{"name":"web","ports":[{"containerPort":53,"protocol":"UDP"}]}]}}}}`,
		`{"apiVersion":"apps/v1","kind":"Deployment","spec":{"selector":{"matchExpressions":[{"key":"a","operator":"In","values":["b"]}]},"template":{"spec":{"containers":[{"name":"a"},{"name":"a"}]}}}}`,
		`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"labels":null},"spec":null}`,
	} {
		f.Add([]byte(seed))
	}
	deployments, _ := schemas.KindByResource(schemas.Deployments)
	call := schemas.Call{Verb: schemas.VerbPatch, Resource: schemas.Deployments, Namespace: "default", Name: "web"}
	a := &Admission{}
	f.Fuzz(func(t *testing.T, body []byte) {
		w := write{kind: deployments, call: call, manager: "m", force: true}
		d, err := manifest(deployments, call, body)
		if known(t, err); err != nil {
			return
		}
		applied, err := asApplied(d)
		if known(t, err); err != nil {
			return
		}
		first, err := a.applyFields(w, docs[0].Object, applied)
		if known(t, err); err != nil {
			return
		}
		stored(t, first)
		// What was applied may be applied again, and then changes nothing.
		again, err := a.applyFields(w, first, applied)
		if err != nil {
			t.Fatal(err)
		}
		sameFields(again, first)
		one, errOne := json.Marshal(first)
		two, errTwo := json.Marshal(again)
		if errOne != nil || errTwo != nil || string(one) != string(two) {
			t.Errorf("applied twice:\n%s\n%s", one, two)
		}
	})
}

func FuzzOptions(f *testing.F) {
	for _, seed := range []string{
		`{"labelSelector":"a in (b,c),!d,e!=f","fieldSelector":"metadata.name=x,spec.nodeName!=y","limit":5,"resourceVersion":"7"}`,
		`{"dryRun":["All"],"fieldManager":"m","force":true,"fieldValidation":"Strict"}`,
		`{"gracePeriodSeconds":0,"preconditions":{"uid":"x"},"propagationPolicy":"Orphan"}`,
		`{"sendInitialEvents":true,"resourceVersionMatch":"NotOlderThan","continue":"eyJydiI6MX0"}`,
	} {
		f.Add(seed)
	}
	pods, _ := schemas.KindByResource(schemas.Pods)
	call := schemas.Call{Verb: schemas.VerbList, Resource: schemas.Pods}
	f.Fuzz(func(t *testing.T, text string) {
		for _, verb := range []string{schemas.VerbList, schemas.VerbWatch} {
			opts, err := readListOptions([]byte(text), verb)
			known(t, err)
			if err != nil {
				continue
			}
			sel, err := selectionOf(pods, call, &opts)
			known(t, err)
			if err == nil {
				sel.matches(pods.New())
			}
			if opts.Continue != "" {
				_, err = readToken(opts.Continue)
				known(t, err)
			}
		}
		_, err := readDeleteOptions([]byte(text))
		known(t, err)
		_, err = readWrite(pods, call, map[string][]string{schemas.HeaderOptions: {text}, schemas.HeaderRequest: {text}}, nil, types.ApplyPatchType)
		known(t, err)
		_, err = readScale([]byte(text), pods.New(), true)
		known(t, err)
	})
}
