package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"gantry.dev/schemas"
)

// block writes text of several lines as it is: what is escaped has no columns.
func (d *description) block(text string) {
	if text = strings.TrimRight(text, "\n"); text == "" {
		return
	}
	for line := range strings.SplitSeq(text, "\n") {
		// The escape is a byte that no UTF-8 holds.
		d.buf.WriteByte(tabwriter.Escape)
		d.buf.WriteString(strings.ToValidUTF8(line, "\uFFFD"))
		d.buf.WriteByte(tabwriter.Escape)
		d.buf.WriteByte('\n')
	}
}

func (d *description) title(text string) {
	fmt.Fprintf(&d.buf, "\n%s\n%s\n", text, strings.Repeat("=", 4))
}

func (d *description) configMap(o *corev1.ConfigMap) {
	if o.Immutable != nil && *o.Immutable {
		d.line(0, "Immutable", "true")
	}
	d.title("Data")
	for _, k := range slices.Sorted(maps.Keys(o.Data)) {
		fmt.Fprintf(&d.buf, "%s:\n----\n", k)
		d.block(o.Data[k])
		d.buf.WriteByte('\n')
	}
	d.title("BinaryData")
	for _, k := range slices.Sorted(maps.Keys(o.BinaryData)) {
		fmt.Fprintf(&d.buf, "%s: %d bytes\n", k, len(o.BinaryData[k]))
	}
	d.buf.WriteByte('\n')
}

// secret says how large the values are and not what they are.
func (d *description) secret(o *corev1.Secret) {
	d.line(0, "Type", "%s", o.Type)
	d.title("Data")
	sizes := map[string]int{}
	for k, v := range o.Data {
		sizes[k] = len(v)
	}
	for k, v := range o.StringData {
		sizes[k] = len(v)
	}
	for _, k := range slices.Sorted(maps.Keys(sizes)) {
		fmt.Fprintf(&d.buf, "%s:\t%d bytes\n", k, sizes[k])
	}
	d.buf.WriteByte('\n')
}

func (d *description) controllerRevision(o *appsv1.ControllerRevision) {
	d.line(0, "Revision", "%d", o.Revision)
	if len(o.Data.Raw) > 0 {
		d.head(0, "Data")
		text, err := yaml.JSONToYAML(o.Data.Raw)
		if err != nil {
			text = o.Data.Raw
		}
		d.block(inset(string(text)))
	}
}

func (d *description) lease(o *coordinationv1.Lease) {
	s := o.Spec
	holder := ""
	if s.HolderIdentity != nil {
		holder = *s.HolderIdentity
	}
	d.line(0, "Holder Identity", "%s", holder)
	if s.LeaseDurationSeconds != nil {
		d.line(0, "Lease Duration", "%ds", *s.LeaseDurationSeconds)
	}
	if s.AcquireTime != nil {
		d.line(0, "Acquire Time", "%s", d.when(s.AcquireTime.Time))
	}
	if s.RenewTime != nil {
		d.line(0, "Renew Time", "%s", d.when(s.RenewTime.Time))
	}
	if s.LeaseTransitions != nil {
		d.line(0, "Lease Transitions", "%d", *s.LeaseTransitions)
	}
}

// rest writes what an object says beyond its metadata, for kinds that have no
// description of their own.
func (d *description) rest(o schemas.Object) error {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return fmt.Errorf("describe %s: %w", o.GetName(), err)
	}
	for _, said := range []string{"apiVersion", "kind", "metadata"} {
		delete(m, said)
	}
	if len(m) == 0 {
		return nil
	}
	text, err := yaml.Marshal(m)
	if err != nil {
		return fmt.Errorf("describe %s: %w", o.GetName(), err)
	}
	d.block(string(text))
	return nil
}

func inset(text string) string {
	var b bytes.Buffer
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}
