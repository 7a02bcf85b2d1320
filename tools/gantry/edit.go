package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"gantry.dev/schemas"
)

type editOptions struct {
	selection   selection
	subresource string
	asJSON      bool
	w           writing
}

func (a *app) editCommand() *cobra.Command {
	var o editOptions
	c := &cobra.Command{
		Use:   "edit KIND/NAME | KIND NAME | -f FILE",
		Short: "Change objects in an editor",
		Long: `Change objects in an editor, one after another. What the server refuses comes
back into the editor with its reason, and what is not sent in the end is kept
in a file. Only the fields that you changed are written; where somebody else
changed one of them meanwhile, you are asked again.

The editor is $GANTRY_EDITOR, $KUBE_EDITOR, $EDITOR or vi; it may have
arguments, and is run without a shell.`,
		Example: "  gantry edit deployment/web\n  EDITOR='code --wait' gantry edit service web",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runEdit(cmd.Context(), &o, args) },
	}
	o.selection.files.flags(c)
	a.writeFlags(c, &o.w)
	c.Flags().StringVar(&o.subresource, "subresource", "", "status: edit only this")
	return c
}

func (a *app) runEdit(ctx context.Context, o *editOptions, args []string) error {
	// Here -o says how the object is shown to be edited.
	switch o.w.output {
	case "", "yaml":
	case "json":
		o.asJSON = true
	default:
		return fmt.Errorf("the editor shows yaml or json, not -o %s", o.w.output)
	}
	o.w.output = ""
	if err := a.prepare(&o.w); err != nil {
		return err
	}
	if o.w.dryRun == dryClient {
		return errors.New("--dry-run=client has nothing to do here: close the editor without a change, or use --dry-run=server")
	}
	if o.subresource != "" && o.subresource != schemas.SubStatus {
		return fmt.Errorf("invalid subresource value: %q; only status can be edited, and the command scale sets the scale", o.subresource)
	}
	objects, err := a.pick(ctx, &o.selection, args)
	if err != nil {
		return err
	}
	for _, t := range objects {
		t.sub = o.subresource
		if err := a.editOne(ctx, o, t); err != nil {
			a.report(err)
		}
	}
	return nil
}

// draft is an object while it is being edited.
type draft struct {
	object object
	asJSON bool
	base   map[string]any // what the edited text is compared with
	text   []byte         // what the editor gets, below the comments
	// fresh says that the text was made by this program: saving it as it is
	// means yes. After a refusal, it means that the person gives up.
	fresh   bool
	remarks []string
	file    string
}

const editHead = `# Edit the object below. Lines at the top that begin with '#' are ignored, and an
# empty file ends the edit. What is refused comes back here with its reason.
#
`

func (a *app) editOne(ctx context.Context, o *editOptions, t object) error {
	reply, err := a.request(ctx, schemas.VerbGet, t.resource(), t.namespace, t.name, nil)
	if err != nil {
		return err
	}
	d := &draft{object: t, asJSON: o.asJSON}
	if err := d.begin(reply.Body); err != nil {
		return err
	}
	if err := d.open(); err != nil {
		return err
	}
	for {
		edited, outcome, err := a.editRound(d)
		if err != nil {
			return d.keep(err)
		}
		if outcome != "" {
			fmt.Fprintln(a.err, outcome)
			if len(d.remarks) > 0 {
				// The editor showed it; a script as editor shows nothing.
				return d.keep(fmt.Errorf("no valid changes were saved: %s", strings.Join(d.remarks, " ")))
			}
			d.discard()
			return nil
		}
		if edited == nil {
			continue // it could not be read, and d says why
		}
		done, err := a.sendDraft(ctx, o, d, edited)
		if err != nil {
			return d.keep(err)
		}
		if done {
			d.discard()
			return nil
		}
	}
}

// begin takes an object of the server's as what is edited.
func (d *draft) begin(raw []byte) error {
	u, err := loose(raw)
	if err != nil {
		return err
	}
	u.SetManagedFields(nil)
	d.base = u.Object
	return d.show(u.Object)
}

func (d *draft) show(o map[string]any) error {
	var err error
	if d.asJSON {
		d.text, err = (&unstructured.Unstructured{Object: o}).MarshalJSON()
		if err == nil {
			d.text, err = prettyJSON(d.text)
		}
	} else {
		d.text, err = yaml.Marshal(o)
	}
	if err != nil {
		return fmt.Errorf("write %s down: %w", d.object, err)
	}
	return nil
}

// open makes the file, which only its owner may read.
func (d *draft) open() error {
	suffix := ".yaml"
	if d.asJSON {
		suffix = ".json"
	}
	f, err := os.CreateTemp("", "gantry-edit-*"+suffix)
	if err != nil {
		return fmt.Errorf("make a file to edit: %w", err)
	}
	d.file = f.Name()
	return f.Close()
}

func (d *draft) discard() { _ = os.Remove(d.file) }

// keep says where the work is that could not be sent.
func (d *draft) keep(err error) error {
	return fmt.Errorf("%w\nA copy of your changes has been stored to %q", worded{err}, d.file)
}

// worded shows an error as describeError does, without the leading word.
type worded struct{ err error }

func (w worded) Error() string { return strings.TrimPrefix(describeError(w.err), "error: ") }

// editRound lets the person edit once. It returns the object that came out,
// or how the edit ended without one; with neither, the remarks say what is
// wrong with it.
func (a *app) editRound(d *draft) (edited map[string]any, outcome string, err error) {
	var all bytes.Buffer
	all.WriteString(editHead)
	for _, r := range d.remarks {
		for line := range strings.Lines(r) {
			all.WriteString("# " + strings.TrimRight(line, "\r\n") + "\n")
		}
	}
	if len(d.remarks) > 0 {
		all.WriteString("#\n")
	}
	all.Write(d.text)
	if err := os.WriteFile(d.file, all.Bytes(), 0o600); err != nil {
		return nil, "", fmt.Errorf("write the file to edit: %w", err)
	}
	if err := a.runEditor(d.file); err != nil {
		return nil, "", err
	}
	saved, err := os.ReadFile(d.file)
	if err != nil {
		return nil, "", fmt.Errorf("read the edited file: %w", err)
	}
	text := withoutHead(saved)
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return nil, "Edit cancelled, saved file was empty.", nil
	case bytes.Equal(text, d.text) && !d.fresh:
		return nil, "Edit cancelled, no changes made.", nil
	}
	d.text, d.fresh = text, false
	if edited, err = d.read(text); err != nil {
		d.remarks = []string{"The edited object was not valid:", err.Error()}
		return nil, "", nil
	}
	return edited, "", nil
}

// withoutHead drops the comments at the top. Further down a line that begins
// with '#' may be part of a value.
func withoutHead(text []byte) []byte {
	for len(text) > 0 && text[0] == '#' {
		i := bytes.IndexByte(text, '\n')
		if i < 0 {
			return nil
		}
		text = text[i+1:]
	}
	return text
}

// read understands the edited text, and refuses that it has become another object.
func (d *draft) read(text []byte) (map[string]any, error) {
	docs := schemas.DecodeAll(text)
	if len(docs) != 1 {
		return nil, fmt.Errorf("want one object, got %d", len(docs))
	}
	if docs[0].Err != nil {
		return nil, docs[0].Err
	}
	edited, err := tree(docs[0].JSON)
	if err != nil {
		return nil, err
	}
	was, is := unstructured.Unstructured{Object: d.base}, unstructured.Unstructured{Object: edited}
	for _, f := range []struct{ name, was, is string }{
		{"apiVersion", was.GetAPIVersion(), is.GetAPIVersion()}, {"kind", was.GetKind(), is.GetKind()},
		{"metadata.name", was.GetName(), is.GetName()}, {"metadata.namespace", was.GetNamespace(), is.GetNamespace()},
	} {
		if f.was != f.is {
			return nil, fmt.Errorf("%s cannot be changed here: it was %q", f.name, f.was)
		}
	}
	return edited, nil
}

// runEditor runs the person's editor on a file and waits for its end.
func (a *app) runEditor(file string) error {
	words := []string{"vi"}
	for _, name := range []string{"EDITOR", "KUBE_EDITOR", "GANTRY_EDITOR"} {
		if w := strings.Fields(os.Getenv(name)); len(w) > 0 {
			words = w
		}
	}
	cmd := exec.Command(words[0], append(words[1:len(words):len(words)], file)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.out, a.err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("there was a problem with the editor %q: %w", strings.Join(words, " "), err)
	}
	return nil
}

// clash says that somebody else changed a field that was edited, too.
type clash struct {
	path string
	now  any
}

func (c *clash) Error() string {
	return fmt.Sprintf("%s was changed by somebody else meanwhile: it is now %v", c.path, orNothing(c.now))
}

// sendDraft sends what was changed. It is false where the person has to look
// again; the remarks say why.
func (a *app) sendDraft(ctx context.Context, o *editOptions, d *draft, edited map[string]any) (bool, error) {
	patch := mergeDiff(d.base, edited)
	if len(patch) == 0 {
		fmt.Fprintln(a.err, "Edit cancelled, no changes made.")
		return true, nil
	}
	var live map[string]any
	raw, _, err := a.change(ctx, &o.w, d.object, "", func(u *unstructured.Unstructured) error {
		live = u.Object
		if c := clashing(d.base, u.Object, patch, ""); c != nil {
			return c
		}
		// The version is that of what was edited, and is no wish of anybody's.
		version := u.GetResourceVersion()
		u.Object = mergePatch(u.Object, patch)
		u.SetResourceVersion(version)
		return nil
	})
	var c *clash
	switch {
	case err == nil:
		return true, a.said(&o.w, d.object.kind, d.object.name, "edited", raw)
	case errors.As(err, &c):
		// The person's changes, on top of what is there now.
		u := unstructured.Unstructured{Object: live}
		u.SetManagedFields(nil)
		d.base = u.Object
		d.fresh = true
		d.remarks = []string{c.Error(), "Your value stands below. Save to write it nevertheless, or change it."}
		return false, d.show(mergePatch(live, patch))
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsForbidden(err), apierrors.IsConflict(err), apierrors.IsRequestEntityTooLargeError(err):
		d.remarks = []string{fmt.Sprintf("%s was refused:", d.object), worded{err}.Error()}
		return false, nil
	}
	return false, err
}

// clashing finds a field that patch would change and that is no longer as it
// was in base, unless it is what the patch wants already.
func clashing(base, live, patch map[string]any, path string) *clash {
	for key, want := range patch {
		at := strings.TrimPrefix(path+"."+key, ".")
		if at == "metadata.resourceVersion" {
			continue
		}
		wantMap, ok1 := want.(map[string]any)
		baseMap, ok2 := base[key].(map[string]any)
		liveMap, ok3 := live[key].(map[string]any)
		if ok1 && ok2 && ok3 {
			if c := clashing(baseMap, liveMap, wantMap, at); c != nil {
				return c
			}
			continue
		}
		if !reflect.DeepEqual(base[key], live[key]) && !reflect.DeepEqual(want, live[key]) {
			return &clash{at, live[key]}
		}
	}
	return nil
}
