package serve

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"gantry.dev/nodeagent/session"
	"gantry.dev/schemas"
)

// refused fails where an error does not say whose fault it is.
func refused(t *testing.T, err error) {
	t.Helper()
	var known apierrors.APIStatus
	if !errors.As(err, &known) || known.Status().Code < 400 || known.Status().Code >= 500 || known.Status().Message == "" {
		t.Errorf("refused with %v", err)
	}
}

// FuzzUpload sends two pieces of an image with whatever headers: one that is
// refused leaves no file, and no file is anywhere but in its place.
func FuzzUpload(f *testing.F) {
	f.Add("a", "0", "false", []byte("one"), "3", "true", []byte("two"))
	f.Add("a", "9223372036854775807", "true", []byte("one"), "0", "true", []byte{})
	f.Add("a", "17179869184", "false", []byte("x"), "5", "false", []byte("bad"))
	f.Add("../a", "-1", "TRUE", []byte{}, "1e3", "", []byte{})
	f.Fuzz(func(t *testing.T, name, offset, last string, body []byte, offset2, last2 string, body2 []byte) {
		home := t.TempDir()
		dir := filepath.Join(home, "uploads")
		images, err := NewImages(&store{}, dir)
		if err != nil {
			t.Fatal(err)
		}
		before := 0
		for _, p := range []struct {
			offset, last string
			body         []byte
		}{{offset, last, body}, {offset2, last2, body2}} {
			h := map[string][]string{schemas.HeaderUpload: {name}, schemas.HeaderOffset: {p.offset}, schemas.HeaderLast: {p.last}}
			_, _, refusal := images.Put(t.Context(), h, p.body)
			if refusal != nil {
				refused(t, refusal)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if refusal != nil && len(entries) > before {
				t.Errorf("a piece at %q was refused (%v) and left a file", p.offset, refusal)
			}
			before = len(entries)
			for _, e := range entries {
				info, err := e.Info()
				if err != nil {
					t.Fatal(err)
				}
				if e.Name() != name+".part" || info.Size() > int64(len(body)+len(body2)) {
					t.Errorf("of %d bytes there is a file %q of %d", len(body)+len(body2), e.Name(), info.Size())
				}
			}
		}
		if beside, err := os.ReadDir(home); err != nil || len(beside) != 1 {
			t.Errorf("beside the uploads: %v, %v", beside, err)
		}
	})
}

// unopened checks what it is to open, and opens nothing.
type unopened struct{}

func (unopened) Open(id, _ string, _ []byte, _ func() (session.Work, error)) (bool, error) {
	return true, session.CheckID(id)
}

// FuzzRequests asks a node with whatever body: it is refused by a Status, or
// names a container that there is.
func FuzzRequests(f *testing.F) {
	for i, body := range []string{
		`{"namespace":"default","pod":"web","container":"app","command":["sh"],"session":"0123456789abcdef","columns":80,"rows":24}`,
		`{"namespace":"default","pod":"web","session":"0123456789abcdef","stdin":true}`,
		`{"namespace":"default","pod":"web","session":"0123456789abcdef","port":80}`,
		`{"namespace":"default","pod":"web","container":"app","session":"0123456789abcdef","path":"/etc","write":true}`,
		`{"namespace":"default","pod":"web","container":"app","tailLines":9223372036854775807,"sinceTime":"2024-01-01T00:00:00Z","cursor":"0:0","waitSeconds":-1}`,
		`{"pod":"web","container":"other","command":["\u0000"],"port":65536,"path":"\u0000","cursor":"-1:x"}`, `null`, `[]`, `{"pod":`,
	} {
		f.Add(uint8(i), []byte(body))
	}
	dir := f.TempDir()
	l := &Logs{Pods: onePod{}, Dir: func(types.UID) string { return dir }}
	transfers := &Transfers{Pods: onePod{}, Sessions: unopened{}, Sandbox: sandbox(0)}
	streams := &Streams{Pods: onePod{}, Sessions: unopened{}}
	answers := []func(context.Context, map[string][]string, []byte) ([]byte, map[string][]string, error){
		streams.Exec, streams.Attach, transfers.Forward, transfers.Copy, l.Answer,
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a log that is waited for is not
		out, _, err := answers[int(method)%len(answers)](ctx, nil, body)
		if err != nil {
			refused(t, err)
			return
		}
		if method%5 != 4 && !bytes.Contains(out, []byte(`"session":`)) {
			t.Errorf("answered %q", out)
		}
	})
}
