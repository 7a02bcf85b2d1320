package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/schemas"
)

func (a *app) explainCommand() *cobra.Command {
	var output, version string
	var recursive bool
	c := &cobra.Command{
		Use:   "explain KIND[.FIELD...]",
		Short: "Say what the fields of a kind mean, and what Gantry makes of them",
		Long: `What is said of each field is Kubernetes' own text. A field that Gantry does
not act on says so: it is refused, with the reason, or it has no effect. This
program knows the fields itself and asks no server.`,
		Example: `  gantry explain deployment.spec.strategy
  gantry explain pods --recursive`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("you must specify the type of resource to explain, such as pods; see gantry api-resources")
			}
			kind, fields := explained(args[0])
			k, err := kindOf(kind)
			if err != nil {
				return err
			}
			if have := k.GVK.GroupVersion().String(); version != "" && version != have {
				return fmt.Errorf("couldn't find resource %q in version %q: there is %s", k.Resource, version, have)
			}
			e, err := schemas.Explain(k.Resource, fields, recursive)
			if err != nil {
				return err
			}
			switch output {
			case "plaintext":
				return writeExplanation(a.out, k, e, recursive)
			case "json":
				enc := json.NewEncoder(a.out)
				enc.SetIndent("", "  ")
				return enc.Encode(e)
			}
			return fmt.Errorf("unrecognized format: %s; use plaintext or json", output)
		},
	}
	c.Flags().BoolVar(&recursive, "recursive", false, "the fields of fields, too, without their texts")
	c.Flags().StringVarP(&output, "output", "o", "plaintext", "one of: plaintext, json")
	c.Flags().StringVar(&version, "api-version", "", "only if the kind is of this version, such as apps/v1")
	return c
}

// explained reads deployments.spec.replicas, deployments.apps and
// deployments.apps.spec: a group is no field.
func explained(arg string) (kind string, fields []string) {
	parts := strings.Split(strings.TrimSuffix(arg, "."), ".")
	kind, fields = parts[0], parts[1:]
	k, err := kindOf(kind)
	if err != nil || k.GVK.Group == "" {
		return kind, fields
	}
	group := strings.Split(k.GVK.Group, ".")
	if rest, ok := strings.CutPrefix(strings.Join(fields, ".")+".", strings.Join(group, ".")+"."); ok {
		fields = nil
		if rest != "" {
			fields = strings.Split(strings.TrimSuffix(rest, "."), ".")
		}
	}
	return kind, fields
}

func writeExplanation(w io.Writer, k schemas.Kind, e schemas.Explanation, recursive bool) error {
	var b strings.Builder
	if k.GVK.Group != "" {
		fmt.Fprintf(&b, "GROUP:      %s\n", k.GVK.Group)
	}
	fmt.Fprintf(&b, "KIND:       %s\nVERSION:    %s\n", k.GVK.Kind, k.GVK.Version)
	if e.Refused != "" {
		fmt.Fprintf(&b, "REFUSED:    %s\n", e.Refused)
	}
	b.WriteByte('\n')
	if e.Name != "" {
		fmt.Fprintf(&b, "FIELD: %s <%s>\n", e.Name, e.Type)
		if len(e.Enum) > 0 {
			b.WriteString("ENUM:\n")
			for _, v := range e.Enum {
				fmt.Fprintf(&b, "    %s\n", orText(v, `""`))
			}
		}
		if s := support(e.Field); s != "" {
			fmt.Fprintf(&b, "SUPPORT:\n%s\n", wrapped(s, 4))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "DESCRIPTION:\n%s\n", wrapped(orText(e.Description, "<empty>"), 4))
	if len(e.Fields) > 0 {
		b.WriteString("\nFIELDS:\n")
		explainFields(&b, e.Fields, 1, recursive)
	}
	_, err := io.WriteString(w, strings.TrimRight(b.String(), "\n")+"\n\n")
	return err
}

func explainFields(b *strings.Builder, fields []schemas.Field, depth int, short bool) {
	indent := strings.Repeat("  ", depth)
	for _, f := range fields {
		fmt.Fprintf(b, "%s%s\t<%s>", indent, f.Name, f.Type)
		if f.Required {
			b.WriteString(" -required-")
		}
		if s := support(f); s != "" {
			fmt.Fprintf(b, " (%s)", s)
		}
		b.WriteByte('\n')
		if short {
			explainFields(b, f.Fields, depth+1, true)
			continue
		}
		if len(f.Enum) > 0 {
			fmt.Fprintf(b, "%senum: %s\n", indent, strings.Join(f.Enum, ", "))
		}
		fmt.Fprintf(b, "%s\n\n", wrapped(orText(f.Description, "<no description>"), 2*depth+2))
	}
}

// support says what is out of the ordinary: nothing of a field that works as
// Kubernetes documents it.
func support(f schemas.Field) string {
	word := ""
	switch f.Level {
	case schemas.Refused:
		word = "refused"
		if f.OnlyEmpty {
			word = "refused unless empty"
		}
	case schemas.Ignored:
		word = "no effect"
	case schemas.System:
		word = "written by Gantry"
	default:
		if len(f.Values) > 0 {
			word = "takes only " + strings.Join(f.Values, ", ")
		}
	}
	switch {
	case word == "":
		return f.Reason
	case f.Reason == "":
		return word
	}
	return word + ": " + f.Reason
}

const lineLength = 80

// wrapped fills lines; what the text breaks itself stays broken.
func wrapped(text string, indent int) string {
	var out []string
	margin := strings.Repeat(" ", indent)
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		at := margin
		for word := range strings.FieldsSeq(line) {
			if len(at) > indent && len(at)+1+len(word) > lineLength {
				out = append(out, at)
				at = margin
			}
			if len(at) > indent {
				at += " "
			}
			at += word
		}
		out = append(out, strings.TrimRight(at, " "))
	}
	return strings.Join(out, "\n")
}
