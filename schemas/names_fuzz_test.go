package schemas

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// token says that a text may stand between the dots of a subject.
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r == 0x7f || r == '.' || r == '*' || r == '>' || r == '$'
	})
}

// FuzzParseAPI holds that a subject is refused or taken apart into a call whose
// own subject means the same, whatever the cluster's prefix is.
func FuzzParseAPI(f *testing.F) {
	for _, s := range []string{
		"api.get.pods.default.web", "api.list.pods._", "api.patch.deployments/scale.default.web", "api.get.clusterroles._.system=3Aadmin",
		"api.get.pods.default.a.b.c", "api.get.pods.default.=2E=2E", "api.get.pods.default.=1g", "api.get.pods.default.=", "api.get.roles.default.=FF",
		"api.schema._._", "api....", "api.get.pods/.default.a", "api.get./status.default.a", "team.api.list.nodes._",
	} {
		f.Add(s, "")
		f.Add(s, "team")
	}
	f.Fuzz(func(t *testing.T, subject, prefix string) {
		n := Names{Prefix: prefix}
		call, err := n.ParseAPI(subject)
		if err != nil {
			if err.Error() == "" {
				t.Error("empty error")
			}
			return
		}
		if !utf8.ValidString(call.Name) && utf8.ValidString(subject) {
			t.Errorf("%q names an object %q, which is no text", subject, call.Name)
		}
		resource := call.Resource
		if strings.Contains(strings.SplitN(strings.TrimPrefix(subject, prefix), ".", 5)[2], "/") || call.Subresource != "" {
			resource += "/" + call.Subresource
		}
		again, err := n.ParseAPI(n.API(call.Verb, resource, call.Namespace, call.Name))
		if err != nil || again != call {
			t.Errorf("%q is %+v, whose own subject is %+v, %v", subject, call, again, err)
		}
	})
}

// FuzzObjectKey holds that every object has a key of its own, that a key can be
// published, and that what is no key is refused.
func FuzzObjectKey(f *testing.F) {
	for _, name := range []string{"web", "a.b", "a..b", ".a", "a.", "system:admin", "a b", "*", ">", "=", "=2E", "ü", "\xff", "\x00", "_"} {
		f.Add(Pods, "default", name)
		f.Add(ClusterRoles, "", name)
		f.Add(Pods, name, "default")
	}
	f.Add("pods", "default", "=41")
	f.Fuzz(func(t *testing.T, resource, namespace, name string) {
		// What is given as a key itself is the object's one key, or refused.
		key := resource + "." + namespaceToken(namespace) + "." + name
		if r, ns, n, err := ParseObjectKey(key); err == nil && ObjectKey(r, ns, n) != key && strings.Contains(name, "=") {
			t.Errorf("%q and %q are both the key of %s %s/%s", key, ObjectKey(r, ns, n), r, ns, n)
		}
		if !token(resource) || namespace != "" && !token(namespace) || namespace == AllNamespaces || name == "" {
			return
		}
		key = ObjectKey(resource, namespace, name)
		for part := range strings.SplitSeq(key, ".") {
			if !token(part) {
				t.Errorf("key %q of %q cannot be published", key, name)
			}
		}
		r, ns, n, err := ParseObjectKey(key)
		if !utf8.ValidString(name) {
			if err == nil {
				t.Errorf("%q is the key of what is no text", key)
			}
			return
		}
		if err != nil || r != resource || ns != namespace || n != name {
			t.Errorf("%q became %q, %q, %q, %v", key, r, ns, n, err)
		}
	})
}
