package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Claims is the register of who writes what, so that every fact has one
// writer. A claim is "<resource>[/<part>][@<kind>]": resource is a plural, or
// "*" for every resource; part names a piece of the record ("status",
// "spec.nodeName", "metadata.ownerReferences"), without it the claim is on the
// record itself, its existence and all that has no claim of its own; @kind
// limits it to records that an object of that kind controls. Requests for
// deletion are claimed by nobody: the mark is set once and never taken back,
// so two that set it agree.
//
// The zero value is ready to use. It is not safe for concurrent use: claims
// are made while starting.
type Claims struct {
	made []claim
}

type claim struct {
	writer, resource, part, kind string
}

// Register claims for a writer, and refuses all of them where another has
// claimed any of it.
func (c *Claims) Register(writer string, writes ...string) error {
	var added []claim
	var errs []error
	for _, w := range writes {
		n, err := parseClaim(writer, w)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, other := range c.made {
			if n.overlaps(other) {
				errs = append(errs, fmt.Errorf("%s cannot write %s: %s writes %s, and a fact has one writer", writer, n, other.writer, other))
			}
		}
		added = append(added, n)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	c.made = append(c.made, added...)
	return nil
}

// List returns "<claim> <writer>" for every claim, sorted, for documentation.
func (c *Claims) List() []string {
	var out []string
	for _, m := range c.made {
		out = append(out, m.String()+" "+m.writer)
	}
	slices.Sort(out)
	return out
}

// allows says whether a writer may change a record of the resource: with
// status, its status; else anything else of it.
func (c *Claims) allows(writer, resource string, status bool) bool {
	return slices.ContainsFunc(c.made, func(m claim) bool {
		return m.writer == writer && (m.resource == resource || m.resource == "*") && (m.part == "status") == status
	})
}

func parseClaim(writer, s string) (claim, error) {
	rest, kind, _ := strings.Cut(s, "@")
	resource, part, _ := strings.Cut(rest, "/")
	if resource == "" {
		return claim{}, fmt.Errorf("%s: claim %q names no resource", writer, s)
	}
	return claim{writer: writer, resource: resource, part: part, kind: kind}, nil
}

func (c claim) overlaps(o claim) bool {
	sameResource := c.resource == o.resource || c.resource == "*" || o.resource == "*"
	sameKind := c.kind == o.kind || c.kind == "" || o.kind == ""
	return c.writer != o.writer && sameResource && c.part == o.part && sameKind
}

func (c claim) String() string {
	s := c.resource
	if c.part != "" {
		s += "/" + c.part
	}
	if c.kind != "" {
		s += "@" + c.kind
	}
	return s
}
