package schemas

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// problems collects what is wrong with an object. Its methods take the parent's
// path and the field's name apart where the check mostly finds nothing: a path
// costs an allocation, which only an error should pay.
type problems struct{ found field.ErrorList }

func (p *problems) add(errs field.ErrorList) { p.found = append(p.found, errs...) }

func (p *problems) required(at *field.Path, why string) {
	p.found = append(p.found, field.Required(at, why))
}

func (p *problems) forbidden(at *field.Path, why string) {
	p.found = append(p.found, field.Forbidden(at, why))
}

// invalid makes one error of each message; none, none.
func (p *problems) invalid(at *field.Path, value any, messages ...string) {
	for _, m := range messages {
		p.found = append(p.found, field.Invalid(at, value, m))
	}
}

func (p *problems) duplicate(at *field.Path, value any) {
	p.found = append(p.found, field.Duplicate(at, value))
}

func (p *problems) notFound(at *field.Path, value any) {
	p.found = append(p.found, field.NotFound(at, value))
}

func (p *problems) tooLong(at *field.Path, most int) {
	p.found = append(p.found, field.TooLong(at, "", most))
}

func (p *problems) tooMany(at *field.Path, n, most int) {
	p.found = append(p.found, field.TooMany(at, n, most))
}

// check applies a rule that returns messages, such as those of
// k8s.io/apimachinery, to a field that is given.
func (p *problems) check(rule func(string) []string, value string, at *field.Path, name string) {
	if messages := rule(value); len(messages) > 0 {
		p.invalid(child(at, name), value, messages...)
	}
}

// checkRequired is check for a field that has to be given.
func (p *problems) checkRequired(rule func(string) []string, value string, at *field.Path, name string) {
	if value == "" {
		p.required(child(at, name), "")
		return
	}
	p.check(rule, value, at, name)
}

// given refuses an empty field.
func (p *problems) given(value string, at *field.Path, name string) {
	if value == "" {
		p.required(child(at, name), "")
	}
}

// notNegative refuses a number below 0.
func (p *problems) notNegative(n int64, at *field.Path, name string) {
	if n < 0 {
		p.found = append(p.found, nonNegative(n, child(at, name))...)
	}
}

// notNegativePtr is notNegative for a field that may be left out.
func (p *problems) notNegativePtr(n *int32, at *field.Path, name string) {
	if n != nil {
		p.notNegative(int64(*n), at, name)
	}
}

// id checks a user's or group's number, where one is given.
func (p *problems) id(rule func(int64) []string, n *int64, at *field.Path, name string) {
	if n == nil {
		return
	}
	if messages := rule(*n); len(messages) > 0 {
		p.invalid(child(at, name), *n, messages...)
	}
}

// notPositive is what Kubernetes says of what has to be more than 0.
const notPositive = "must be greater than zero"

// choose refuses a value outside an enumeration, the empty one too.
func choose[T ~string](p *problems, v T, at *field.Path, name string, valid []T) {
	if !slices.Contains(valid, v) {
		p.found = append(p.found, field.NotSupported(child(at, name), v, valid))
	}
}

// chooseRequired is choose, but says of the empty value that one is required.
func chooseRequired[T ~string](p *problems, v T, at *field.Path, name string, valid []T) {
	if v == "" {
		p.required(child(at, name), "")
		return
	}
	choose(p, v, at, name, valid)
}

// choosePtr is choose for a field that may be left out.
func choosePtr[T ~string](p *problems, v *T, at *field.Path, name string, valid []T) {
	if v != nil {
		choose(p, *v, at, name, valid)
	}
}
