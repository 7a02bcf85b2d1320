package schemas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	yamlv3 "go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Limits of what Decode takes.
const (
	// MaxObjectBytes bounds one object, as written and as stored. It stays
	// below the bus's message size of 1 MiB with room for headers and for the
	// envelope of a node's record.
	MaxObjectBytes = 900 << 10
	// MaxManifestBytes bounds a whole file of manifests.
	MaxManifestBytes = 64 << 20
	// maxDepth bounds nesting; no Kubernetes type comes near it.
	maxDepth = 100
)

// Problem is one thing wrong in a document.
type Problem struct {
	Path   string // "spec.template.spec.containers[0].ports"; empty for the whole
	Detail string
	Line   int // 1-based, 0 where it is not known
}

func (p Problem) String() string {
	s := p.Detail
	if p.Path != "" {
		s = p.Path + ": " + s
	}
	if p.Line > 0 {
		s = fmt.Sprintf("line %d: %s", p.Line, s)
	}
	return s
}

// DecodeError is everything wrong with one document. APIVersion, Kind,
// Namespace and Name say whose it is, as far as it could be read.
type DecodeError struct {
	APIVersion, Kind, Namespace, Name string
	Problems                          []Problem
	// TooLarge says that the document was refused for its size, unread.
	TooLarge bool
}

func (e *DecodeError) Error() string {
	var b strings.Builder
	if e.Kind != "" {
		b.WriteString(e.Kind)
		if e.Name != "" {
			b.WriteString(" " + strconv.Quote(e.Name))
		}
		b.WriteString(": ")
	}
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// Document is one object of a file.
type Document struct {
	Index int // 1-based position among the file's objects
	Line  int // 1-based line where it begins; 0 for an item of a List or array
	// JSON is the document as its author wrote it, as JSON: what an apply
	// sends, so that the server sees which fields were left out. Nil where it
	// could not be read.
	JSON []byte
	// Object is nil where Err is set. It is neither defaulted nor validated.
	Object Object
	Err    error // a *DecodeError
}

// Decode reads one object, JSON or YAML, strictly: unknown and doubled fields
// and wrong types are refused, each with its path. The error is a
// *DecodeError. The object is neither defaulted nor validated.
func Decode(data []byte) (Object, error) {
	docs := DecodeAll(data)
	if len(docs) != 1 {
		return nil, &DecodeError{Problems: []Problem{{Detail: fmt.Sprintf("want one object, got %d", len(docs))}}}
	}
	return docs[0].Object, docs[0].Err
}

// DecodeAll reads every object of a file: documents of YAML or JSON, and the
// items of Lists and arrays. One that is broken spoils no other.
func DecodeAll(data []byte) []Document {
	if len(data) > MaxManifestBytes {
		return []Document{{Index: 1, Line: 1, Err: &DecodeError{TooLarge: true, Problems: []Problem{{
			Detail: fmt.Sprintf("the file has %d bytes, more than the limit of %d; split it", len(data), MaxManifestBytes)}}}}}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var docs []Document
	for _, c := range splitDocuments(data) {
		docs = append(docs, decodeChunk(c)...)
	}
	for i := range docs {
		docs[i].Index = i + 1
	}
	return docs
}

// chunk is a piece of a file and the line where it begins.
type chunk struct {
	text []byte
	line int
}

// splitDocuments cuts at the lines "---" and "...". In valid YAML and JSON
// such a line is never content: block scalars are indented.
func splitDocuments(data []byte) []chunk {
	var out []chunk
	start, startLine, line := 0, 1, 1
	flush := func(end int) {
		text := data[start:end]
		if !blank(text) {
			out = append(out, chunk{text, startLine})
		}
	}
	for pos := 0; pos < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		l := bytes.TrimRight(data[pos:end], "\r\n")
		switch {
		case isMarker(l, "---"):
			flush(pos)
			// What follows the marker on its line belongs to the document.
			start, startLine = pos+3, line
		case isMarker(l, "..."):
			flush(pos)
			start, startLine = end, line+1
		}
		pos = end
	}
	flush(len(data))
	return out
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t')
}

// blank says that a document holds nothing but space, comments and directives.
func blank(text []byte) bool {
	for l := range bytes.Lines(text) {
		l = bytes.TrimSpace(l)
		if len(l) > 0 && l[0] != '#' && l[0] != '%' {
			return false
		}
	}
	return true
}

func decodeChunk(c chunk) []Document {
	fail := func(p Problem) []Document {
		return []Document{{Line: c.line, Err: &DecodeError{Problems: []Problem{p}}}}
	}
	if !utf8.Valid(c.text) {
		at := 0
		for at < len(c.text) {
			r, n := utf8.DecodeRune(c.text[at:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			at += n
		}
		return fail(Problem{Line: c.line + bytes.Count(c.text[:at], []byte("\n")), Detail: "not valid UTF-8"})
	}
	trimmed := bytes.TrimSpace(c.text)
	if trimmed[0] == '{' || trimmed[0] == '[' {
		return decodeJSONStream(c)
	}
	node, err := parseYAML(c.text)
	if err != nil {
		return fail(Problem{Line: yamlErrorLine(err, c.line), Detail: "not valid YAML: " + yamlErrorText(err)})
	}
	// Kubernetes reads YAML by the rules of this library (YAML 1.1 booleans,
	// for one), so the value is its, and the tree of v3 serves the lines only.
	asJSON, err := yaml.YAMLToJSONStrict(c.text)
	if err != nil {
		return fail(Problem{Line: yamlErrorLine(err, c.line), Detail: "not valid YAML: " + yamlErrorText(err)})
	}
	docs := expand(asJSON, lines{node: node, offset: c.line - 1})
	for i := range docs {
		if docs[i].Line == 0 && len(docs) == 1 {
			docs[i].Line = c.line
		}
	}
	return docs
}

// parseYAML returns the tree of a document. The library panics on some broken
// input; that is an error like any other here.
func parseYAML(text []byte) (node *yamlv3.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: %v", r)
		}
	}()
	node = new(yamlv3.Node)
	if err := yamlv3.Unmarshal(text, node); err != nil {
		return nil, err
	}
	return node, nil
}

var yamlLine = regexp.MustCompile(`line (\d+)(: )?`)

var parserErrors = []string{"expected '-' indicator", "expected key", "expected ',' or", "expected node content", "expected <document start>"}

func yamlErrorLine(err error, first int) int {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return first
	}
	n, convErr := strconv.Atoi(m[1])
	if convErr != nil {
		return first
	}
	// The library counts from 0 in the errors of its parser, though not in those
	// of its scanner.
	for _, s := range parserErrors {
		if strings.Contains(err.Error(), s) {
			n++
			break
		}
	}
	return first + n - 1
}

func yamlErrorText(err error) string {
	s := err.Error()
	s = strings.ReplaceAll(s, "error converting YAML to JSON: ", "")
	s = strings.TrimPrefix(s, "yaml: ")
	s = strings.TrimPrefix(s, "unmarshal errors:\n")
	s = yamlLine.ReplaceAllString(s, "")
	return strings.Join(strings.Fields(s), " ")
}

// decodeJSONStream reads JSON values that follow one another.
func decodeJSONStream(c chunk) []Document {
	var docs []Document
	dec := json.NewDecoder(bytes.NewReader(c.text))
	lineAt := func(offset int64) int {
		offset = min(offset, int64(len(c.text)))
		return c.line + bytes.Count(c.text[:offset], []byte("\n"))
	}
	for {
		at := dec.InputOffset()
		for at < int64(len(c.text)) && strings.IndexByte(" \t\r\n", c.text[at]) >= 0 {
			at++
		}
		if err := jsonDepth(c.text[at:]); err != nil {
			return append(docs, Document{Line: lineAt(at), Err: &DecodeError{Problems: []Problem{{Line: lineAt(at), Detail: err.Error()}}}})
		}
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			var syntax *json.SyntaxError
			line := lineAt(int64(len(c.text)))
			if errors.As(err, &syntax) {
				line = lineAt(max(syntax.Offset-1, 0))
			}
			return append(docs, Document{Line: lineAt(at), Err: &DecodeError{Problems: []Problem{{Line: line, Detail: "not valid JSON: " + err.Error()}}}})
		}
		one := expand(raw, lines{})
		if len(one) == 1 {
			one[0].Line = lineAt(at)
		}
		docs = append(docs, one...)
	}
}

// jsonDepth refuses nesting beyond maxDepth before anything recurses into it.
func jsonDepth(data []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("nested deeper than %d levels", maxDepth)
			}
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return nil
			}
		}
	}
	return nil
}

// lines finds where a path stands in a YAML document.
type lines struct {
	node   *yamlv3.Node
	offset int
}

// mostSearched bounds the nodes of a mapping in which a line is looked for.
const mostSearched = 2 * 4096

// child descends by field name or, with name empty, by index.
func (l lines) child(name string, index int) lines {
	n := l.node
	if n == nil {
		return l
	}
	if n.Kind == yamlv3.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	for n.Kind == yamlv3.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	switch {
	case n.Kind == yamlv3.MappingNode && len(n.Content) > mostSearched:
		// Each of its keys is looked for among all: the mapping's line will do.
	case n.Kind == yamlv3.MappingNode && name != "":
		// The last wins, as in the value.
		for i := len(n.Content) - 2; i >= 0; i -= 2 {
			if n.Content[i].Value == name {
				// A key's own line is the better answer for what is inline; a
				// container's content begins on the next line.
				v := *n.Content[i+1]
				v.Line = n.Content[i].Line
				return lines{&v, l.offset}
			}
		}
	case n.Kind == yamlv3.SequenceNode && name == "" && index < len(n.Content):
		return lines{n.Content[index], l.offset}
	}
	return l
}

func (l lines) line() int {
	if l.node == nil || l.node.Line == 0 {
		return 0
	}
	return l.node.Line + l.offset
}

// expand turns one JSON value into documents: itself, or the items of a List
// or array.
func expand(raw []byte, at lines) []Document {
	fail := func(e *DecodeError) []Document { return []Document{{Line: at.line(), Err: e}} }
	if err := jsonDepth(raw); err != nil {
		return fail(&DecodeError{Problems: []Problem{{Line: at.line(), Detail: err.Error()}}})
	}
	raw = bytes.TrimSpace(raw)
	if len(raw) > 0 && raw[0] == '[' {
		var items []json.RawMessage
		if err := json.Unmarshal(raw, &items); err != nil {
			return fail(&DecodeError{Problems: []Problem{{Line: at.line(), Detail: err.Error()}}})
		}
		return expandItems(items, at)
	}
	var head struct {
		APIVersion any `json:"apiVersion"`
		Kind       any `json:"kind"`
		Metadata   any `json:"metadata"`
	}
	if len(raw) == 0 || raw[0] != '{' || kjson.UnmarshalCaseSensitivePreserveInts(raw, &head) != nil {
		return fail(&DecodeError{Problems: []Problem{{Line: at.line(), Detail: "want an object with apiVersion, kind and metadata"}}})
	}
	kind, _ := head.Kind.(string)
	apiVersion, _ := head.APIVersion.(string)
	if _, known := KindByGVK(apiVersion, kind); !known && isList(apiVersion, kind) {
		var list struct {
			APIVersion string            `json:"apiVersion"`
			Kind       string            `json:"kind"`
			Metadata   json.RawMessage   `json:"metadata"`
			Items      []json.RawMessage `json:"items"`
		}
		strict, err := kjson.UnmarshalStrict(raw, &list)
		if err != nil {
			strict = append(strict, err)
		}
		if len(strict) > 0 {
			e := &DecodeError{APIVersion: apiVersion, Kind: kind}
			for _, s := range strict {
				e.Problems = append(e.Problems, Problem{Line: at.line(), Detail: s.Error()})
			}
			return fail(e)
		}
		return expandItems(list.Items, at.child("items", 0))
	}
	d := decodeOne(raw, apiVersion, kind, head.Metadata, at)
	return []Document{d}
}

func isList(apiVersion, kind string) bool {
	if apiVersion == "v1" && kind == "List" {
		return true
	}
	item, ok := strings.CutSuffix(kind, "List")
	if !ok {
		return false
	}
	_, ok = KindByGVK(apiVersion, item)
	return ok
}

func expandItems(items []json.RawMessage, at lines) []Document {
	var docs []Document
	for i, item := range items {
		docs = append(docs, expand(item, at.child("", i))...)
	}
	return docs
}

func decodeOne(raw []byte, apiVersion, kind string, metadata any, at lines) Document {
	d := Document{Line: at.line()}
	e := &DecodeError{APIVersion: apiVersion, Kind: kind}
	if m, ok := metadata.(map[string]any); ok {
		e.Name, _ = m["name"].(string)
		e.Namespace, _ = m["namespace"].(string)
		if e.Name == "" {
			e.Name, _ = m["generateName"].(string)
		}
	}
	if len(raw) > MaxObjectBytes {
		e.TooLarge = true
		e.Problems = []Problem{{Line: at.line(), Detail: fmt.Sprintf("the object has %d bytes, more than the limit of %d", len(raw), MaxObjectBytes)}}
		d.Err = e
		return d
	}
	if p := kindProblem(apiVersion, kind); p != nil {
		p.Line = at.child(p.Path, 0).line()
		e.Problems = []Problem{*p}
		d.Err = e
		return d
	}
	k, _ := KindByGVK(apiVersion, kind)
	o := k.New()
	strict, err := kjson.UnmarshalStrict(raw, o)
	if err != nil || len(strict) > 0 {
		e.Problems = explain(raw, reflect.TypeOf(o).Elem(), at)
		// The walk knows less than the decoder about some corner: what the
		// decoder said stands where the walk found nothing.
		if len(e.Problems) == 0 {
			for _, s := range append(strict, err) {
				if s != nil {
					e.Problems = append(e.Problems, Problem{Line: at.line(), Detail: s.Error()})
				}
			}
		}
		d.Err = e
		return d
	}
	d.JSON, d.Object = raw, o
	return d
}

// kindProblem says why there is no such kind, and what there is.
func kindProblem(apiVersion, kind string) *Problem {
	switch {
	case kind == "":
		return &Problem{Path: "kind", Detail: "required: a string such as Deployment"}
	case apiVersion == "":
		return &Problem{Path: "apiVersion", Detail: "required: a string such as apps/v1"}
	}
	if k, ok := KindByGVK(apiVersion, kind); ok {
		if k.Refused != "" {
			return &Problem{Path: "kind", Detail: fmt.Sprintf("%s is not supported by Gantry yet: %s; see docs/supported-fields.md", kind, k.Refused)}
		}
		return nil
	}
	var names []string
	for _, k := range Kinds {
		if k.GVK.Kind == kind {
			return &Problem{Path: "apiVersion", Detail: fmt.Sprintf("%q has no kind %s; write apiVersion: %s", apiVersion, kind, k.GVK.GroupVersion())}
		}
		if k.Refused == "" {
			names = append(names, k.GVK.Kind)
		}
	}
	return &Problem{Path: "kind", Detail: fmt.Sprintf("%s of %s is not supported by Gantry, which knows %s; see docs/supported-fields.md",
		kind, apiVersion, strings.Join(names, ", "))}
}
