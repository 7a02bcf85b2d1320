package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/schemas"
)

// times joins n texts, each made of its number.
func times(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format+",", i)
	}
	return strings.TrimSuffix(b.String(), ",")
}

// nested is a value in so many objects.
func nested(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }

// TestInputBeyondEveryBound holds that what is too large, too deep, too many or
// no text at all is refused by a message that says what the bound is and fits
// into an answer, whatever the verb, and that nothing of it is stored.
func TestInputBeyondEveryBound(t *testing.T) {
	w := newWorld(t)
	w.result(schemas.Deployments, "web", web)
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "", pod("web", `,"nodeName":"n1"`))
	w.ok(schemas.VerbCreate, schemas.Pods, "default", "", pod("free", ""))
	const group = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: new}\n"
	long := strings.Repeat("x", schemas.MaxObjectBytes+1)
	large := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new"},"data":{"a":"` + long + `"}}`
	config := func(more string) string {
		return `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new"` + more + `}`
	}
	containers := func(list string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"new"},"spec":{"containers":[` + list + `]}}`
	}
	bomb := group + "x: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n", c, c, c-1, c-1, c-1, c-1, c-1, c-1, c-1, c-1)
	}
	limit, fewer := fmt.Sprint(schemas.MaxObjectBytes), fmt.Sprint(maxOptions)
	tests := []struct {
		desc, verb, resource, name string
		header                     map[string]string
		body                       string
		code                       int32
		says                       []string
	}{
		{"create too large", "create", "configmaps", "new", nil, large, 413, []string{`configmaps "new"`, limit}},
		{"apply too large", "apply", "configmaps", "new", nil, large, 413, []string{`configmaps "new"`, limit}},
		{"update too large", "update", "deployments", "web", nil, long, 413, []string{`deployments "web"`, limit}},
		{"status too large", "update", "deployments/status", "web", nil, long, 413, []string{`deployments "web"`, limit}},
		{"scale too large", "update", "deployments/scale", "web", nil, long, 413, []string{"Scale", limit}},
		{"merge patch too large", "patch", "deployments", "web", patchType(schemas.PatchMerge), `{"a":"` + long + `"}`, 413, []string{"patch", limit}},
		{"JSON patch too large", "patch", "deployments", "web", patchType(schemas.PatchJSON), `["` + long + `"]`, 413, []string{"patch", limit}},
		{"strategic patch too large", "patch", "deployments", "web", patchType(schemas.PatchStrategic), `{"a":"` + long + `"}`, 413, []string{"patch", limit}},
		{"server-side apply too large", "patch", "configmaps", "new", patchType(schemas.PatchApply), large, 413, []string{limit}},
		{"binding too large", "create", "pods/binding", "free", nil, `{"target":{"name":"` + long + `"}}`, 413, []string{"Binding", fewer}},
		{"eviction too large", "create", "pods/eviction", "free", nil, `{"metadata":{"name":"` + long + `"}}`, 413, []string{"Eviction", fewer}},
		{"delete too large", "delete", "pods", "free", nil, `{"dryRun":["` + long + `"]}`, 413, []string{"DeleteOptions", fewer}},
		{"deletecollection too large", "deletecollection", "pods", "", nil, `{"dryRun":["` + long + `"]}`, 413, []string{"DeleteOptions", fewer}},
		{"get too large", "get", "pods", "web", nil, `{"resourceVersion":"` + long + `"}`, 413, []string{"GetOptions", fewer}},
		{"list too large", "list", "pods", "", nil, `{"continue":"` + long + `"}`, 413, []string{"ListOptions", fewer}},
		{"watch too large", "watch", "pods", "", nil, `{"labelSelector":"` + long + `"}`, 413, []string{"ListOptions", fewer}},
		{"log too large", "log", "pods", "web", nil, `{"container":"` + long + `"}`, 413, []string{"LogRequest", fewer}},
		{"exec too large", "exec", "pods", "web", nil, `{"command":["` + long + `"]}`, 413, []string{"ExecRequest", fewer}},
		{"attach too large", "attach", "pods", "web", nil, `{"container":"` + long + `"}`, 413, []string{"AttachRequest", fewer}},
		{"port forward too large", "portforward", "pods", "web", nil, `{"session":"` + long + `"}`, 413, []string{"PortForwardRequest", fewer}},
		{"copy too large", "copy", "pods", "web", nil, `{"path":"` + long + `"}`, 413, []string{"CopyRequest", fewer}},
		{"options too large", "create", "configmaps", "new", map[string]string{schemas.HeaderOptions: `{"fieldManager":"` + long + `"}`}, config(`}`), 413, []string{schemas.HeaderOptions, fewer}},

		{"deep JSON", "create", "configmaps", "new", nil, config(`},"x":` + nested(5000)), 400, []string{"nested deeper than"}},
		{"deep lists", "create", "configmaps", "new", nil, strings.Repeat("[", 400_000), 400, []string{"nested deeper than"}},
		{"deep YAML in brackets", "create", "configmaps", "new", nil, group + "x: " + strings.Repeat("[", 20_000), 400, []string{"YAML"}},
		{"deep YAML in lines", "create", "configmaps", "new", nil, group + "x:\n" + func() string {
			var b strings.Builder
			for i := range 500 {
				b.WriteString(strings.Repeat(" ", i+1) + "a:\n")
			}
			return b.String()
		}(), 400, []string{"nested deeper than"}},
		{"an alias bomb", "create", "configmaps", "new", nil, bomb, 400, []string{"YAML"}},
		{"an alias of itself", "create", "configmaps", "new", nil, group + "x: &a [*a]\n", 400, []string{"YAML"}},
		{"deep options", "create", "configmaps", "new", map[string]string{schemas.HeaderOptions: nested(5000)}, config(`}`), 400, []string{schemas.HeaderOptions, "nested deeper than"}},
		{"deep delete options", "delete", "pods", "free", nil, nested(5000), 400, []string{"DeleteOptions", "nested deeper than"}},
		{"deep list options", "list", "pods", "", nil, nested(5000), 400, []string{"ListOptions", "nested deeper than"}},

		{"a key twice in JSON", "create", "configmaps", "new", nil, config(`},"data":{"a":"1","a":"2"}`), 400, []string{`"new"`, "data"}},
		{"a key twice in YAML", "create", "configmaps", "new", nil, group + "data: {a: x, a: y}\n", 400, []string{`"a"`}},
		{"an option twice", "delete", "pods", "free", nil, `{"gracePeriodSeconds":1,"gracePeriodSeconds":2}`, 400, []string{"DeleteOptions", "gracePeriodSeconds"}},
		{"no text in JSON", "create", "configmaps", "new", nil, config(`},"data":{"a":"` + "\xff" + `"}`), 400, []string{"UTF-8"}},
		{"no text in YAML", "create", "configmaps", "new", nil, group + "data: {a: \xff}\n", 400, []string{"line 4", "UTF-8"}},
		{"no text in options", "create", "configmaps", "new", map[string]string{schemas.HeaderOptions: "{\"fieldManager\":\"\xff\"}"}, config(`}`), 400, []string{schemas.HeaderOptions, "UTF-8"}},
		{"no text in a selector", "list", "pods", "", nil, "{\"labelSelector\":\"\xff\"}", 400, []string{"ListOptions", "UTF-8"}},

		{"a million labels", "create", "configmaps", "new", nil, config(`,"labels":{`+manyLabels(70_000)+`}`) + "}", 422, []string{`"new"`, "metadata.labels: Too long", "262144"}},
		{"a million annotations", "create", "configmaps", "new", nil, config(`,"annotations":{`+manyLabels(70_000)+`}`) + "}", 422, []string{`"new"`, "metadata.annotations: Too long", "262144"}},
		{"a label of a megabyte", "create", "configmaps", "new", nil, config(`,"labels":{"a b":"`+strings.Repeat("x", 800_000)+`"}`) + "}", 422, []string{`"new"`, "metadata.labels"}},
		{"a name of a megabyte", "create", "configmaps", "", nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"` + strings.Repeat("x", 800_000) + `"}}`, 422, []string{"metadata.name"}},
		{"a field of a megabyte", "create", "configmaps", "new", nil, config(`},"` + strings.Repeat("x", 800_000) + `":1`), 400, []string{`"new"`, "bytes more"}},
		{"as many wrong containers as fit", "create", "pods", "new", nil, containers(times(15_000, `{"name":"C_%d","image":"i"}`)), 422, []string{`"new"`, "spec.containers[0].name", "14950 problems more"}},
		{"as many unknown fields as fit", "create", "pods", "new", nil, containers(times(15_000, `{"nam":"c%d","image":"i"}`)), 400, []string{`"new"`, "spec.containers[0].nam"}},
		{"as many wrong options as fit", "create", "configmaps", "new", map[string]string{schemas.HeaderOptions: `{"fieldManager":"` + strings.Repeat(`\u0001`, 20_000) + `"}`}, config(`}`), 422, []string{"fieldManager"}},

		{"a selector of a megabyte", "list", "pods", "", nil, `{"labelSelector":"a in (` + strings.Repeat("b,", 50_000) + `c)"}`, 400, []string{"labelSelector", "16384"}},
		{"a selector of many terms", "list", "pods", "", nil, `{"labelSelector":"` + strings.TrimSuffix(strings.Repeat("a=b,", 300), ",") + `"}`, 400, []string{"selector", "256 terms"}},
		{"a selector that never ends", "list", "pods", "", nil, `{"labelSelector":"` + strings.Repeat("(", 10_000) + `"}`, 400, []string{"labelSelector"}},
		{"a field selector of a megabyte", "watch", "pods", "", nil, `{"fieldSelector":"metadata.name=` + strings.Repeat("b", 50_000) + `"}`, 400, []string{"fieldSelector", "16384"}},
		{"a selector of a deletion", "deletecollection", "pods", "", map[string]string{schemas.HeaderOptions: `{"labelSelector":"` + strings.TrimSuffix(strings.Repeat("a=b,", 300), ",") + `"}`}, ``, 400, []string{"selector", "256 terms"}},

		{"replicas beyond 32 bits", "create", "deployments", "", nil, strings.Replace(web, "replicas: 2", "replicas: 2147483648", 1), 400, []string{`"web"`, "spec.replicas"}},
		{"replicas beyond 64 bits", "create", "deployments", "", nil, strings.Replace(web, "replicas: 2", "replicas: 99999999999999999999", 1), 400, []string{`"web"`, "spec.replicas"}},
		{"replicas that are no whole number", "create", "deployments", "", nil, strings.Replace(web, "replicas: 2", "replicas: 1.5", 1), 400, []string{`"web"`, "spec.replicas"}},
		{"a port beyond 65535", "create", "deployments", "", nil, strings.Replace(web, "{containerPort: 53, protocol: TCP}", "{containerPort: 65536}", 1), 422, []string{"containerPort"}},
		{"a grace beyond 64 bits", "delete", "pods", "free", nil, `{"gracePeriodSeconds":9223372036854775808}`, 400, []string{"DeleteOptions", "gracePeriodSeconds"}},
		{"a limit beyond 64 bits", "list", "pods", "", nil, `{"limit":9223372036854775808}`, 400, []string{"ListOptions", "limit"}},
		{"a negative limit", "list", "pods", "", nil, `{"limit":-1}`, 400, []string{"ListOptions", "limit", "negative"}},
		{"a revision that is no number", "watch", "pods", "", nil, `{"resourceVersion":"99999999999999999999"}`, 400, []string{"resourceVersion", "99999999999999999999"}},
		{"an amount of memory beyond all", "create", "pods", "new", nil, containers(`{"name":"c","image":"i","resources":{"limits":{"memory":"1` + strings.Repeat("0", 100_000) + `x"}}}`), 400, []string{`"new"`, "resources.limits"}},

		{"nothing to create", "create", "configmaps", "new", nil, "", 400, []string{"want one object, got 0"}},
		{"nothing to apply", "apply", "configmaps", "new", nil, "# nothing\n---\n", 400, []string{"want one object, got 0"}},
		{"nothing to update", "update", "deployments", "web", nil, " \n", 400, []string{"want one object, got 0"}},
		{"nothing to patch", "patch", "deployments", "web", nil, "", 400, []string{"patch"}},
		{"nothing to bind", "create", "pods/binding", "free", nil, "", 422, []string{"target.name", "Required"}},
		{"no scale", "update", "deployments/scale", "web", nil, "", 422, []string{"spec.replicas", "Required"}},
		{"nothing to run", "exec", "pods", "web", nil, "", 400, []string{"command"}},

		{"an option of nobody", "create", "configmaps", "new", map[string]string{schemas.HeaderOptions: `{"dryrun":["All"]}`}, config(`}`), 400, []string{schemas.HeaderOptions, `unknown field "dryrun"`}},
		{"an option of another verb", "create", "configmaps", "new", map[string]string{schemas.HeaderOptions: `{"force":true}`}, config(`}`), 422, []string{"force"}},
		{"an option of an update", "update", "deployments", "web", map[string]string{schemas.HeaderOptions: `{"propagationPolicy":"Orphan"}`}, web, 400, []string{schemas.HeaderOptions, "propagationPolicy"}},
		{"options of a delete as header", "delete", "pods", "free", map[string]string{schemas.HeaderOptions: `{}`}, "", 400, []string{schemas.HeaderOptions, "body"}},
		{"options that are no object", "create", "configmaps", "new", map[string]string{schemas.HeaderOptions: `[]`}, config(`}`), 400, []string{schemas.HeaderOptions}},
		{"a request's id of two lines", "delete", "pods", "free", map[string]string{schemas.HeaderRequest: "a\nb"}, "", 400, []string{schemas.HeaderRequest, "128"}},
		{"a request's id of a kilobyte", "delete", "pods", "free", map[string]string{schemas.HeaderRequest: strings.Repeat("x", 1024)}, "", 400, []string{schemas.HeaderRequest, "128"}},
		{"a page of nobody", "list", "pods", "", nil, `{"continue":"` + strings.Repeat("x", 1000) + `"}`, 400, []string{"continue"}},
	}
	before := w.store.View().Revision()
	for _, tt := range tests {
		t.Run(tt.desc, func(t *testing.T) {
			_, _, st := w.with(tt.header, tt.verb, tt.resource, "default", tt.name, tt.body)
			if st == nil {
				t.Fatal("accepted")
			}
			text, err := json.Marshal(st)
			if err != nil || len(text) > 256<<10 {
				t.Errorf("a refusal of %d bytes: %v", len(text), err)
			}
			if st.Code != tt.code || st.Reason != reasons[tt.code] || st.Kind != "Status" {
				t.Errorf("got %d %s: %.300s", st.Code, st.Reason, st.Message)
			}
			for _, says := range tt.says {
				if !strings.Contains(st.Message, says) {
					t.Errorf("it does not say %q: %.400s", says, st.Message)
				}
			}
			if after := w.store.View().Revision(); after != before {
				t.Fatalf("something was written: %d -> %d", before, after)
			}
		})
	}
}

var reasons = map[int32]metav1.StatusReason{
	http.StatusBadRequest:            metav1.StatusReasonBadRequest,
	http.StatusUnprocessableEntity:   metav1.StatusReasonInvalid,
	http.StatusRequestEntityTooLarge: metav1.StatusReasonRequestEntityTooLarge,
}

// TestRefusalsAreWhole holds that the cut of a long refusal falls between
// letters and leaves what others hold as it is.
func TestRefusalsAreWhole(t *testing.T) {
	details := &metav1.StatusDetails{Name: strings.Repeat("ü", 1000), Causes: make([]metav1.StatusCause, 2*mostCauses)}
	details.Causes[0].Message = strings.Repeat("ü", 5000)
	s := metav1.Status{Message: "x" + strings.Repeat("ü", longestMessage), Details: details}
	fill(&s)
	data, err := json.Marshal(s)
	if err != nil || strings.Contains(string(data), "\ufffd") || !strings.HasSuffix(s.Message, " bytes more)") || len(s.Details.Causes) != mostCauses {
		t.Errorf("%d causes, %d bytes: %.100s, %v", len(s.Details.Causes), len(data), data, err)
	}
	if len(details.Causes) != 2*mostCauses || len(details.Name) != 2000 || len(details.Causes[0].Message) != 10_000 {
		t.Error("the error's own details were changed")
	}
}

// TestAWatchOfEverWaits: seconds beyond what a clock counts are as many as a
// watch may take, not none.
func TestAWatchOfEverWaits(t *testing.T) {
	w := newWorld(t)
	pods := schemas.Call{Verb: schemas.VerbWatch, Resource: schemas.Pods}
	for _, seconds := range []string{"9223372036854775807", "9223372037"} {
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
		defer cancel()
		body := fmt.Sprintf(`{"resourceVersion":"%d","timeoutSeconds":%s}`, w.store.View().Revision(), seconds)
		_, _, st := w.api.Handle(ctx, pods, nil, []byte(body))
		if ctx.Err() == nil {
			t.Errorf("a watch of %s seconds ended at once: %+v", seconds, st)
		}
	}
}
