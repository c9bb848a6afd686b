package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// split feeds in to a splitter, step bytes at a time, and returns texts and errors in order. It
// stops at errTooLong, as the reader does.
func split(in []byte, step int) (out []string) {
	var s splitter
	for len(in) > 0 {
		p := in[:min(step, len(in))]
		in = in[len(p):]
		for len(p) > 0 {
			n, done, err := s.scan(p)
			if n <= 0 || n > len(p) {
				panic("scan did not advance")
			}
			p = p[n:]
			if err != nil {
				out = append(out, "! "+err.Error())
			}
			if errors.Is(err, errTooLong) {
				return out
			}
			if done {
				out = append(out, string(s.text))
			}
		}
	}
	return out
}

func TestSplitter(t *testing.T) {
	tooLong := "! " + errTooLong.Error()
	tooDeep := "! " + errTooDeep.Error()
	garbage := "! " + errGarbage.Error()
	for _, tc := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{" \r\n\t", nil},
		{"{}", []string{"{}"}},
		{"{}{}\n[]", []string{"{}", "{}", "[]"}},
		{"{\n \"a\": {} }\n", []string{"{\n \"a\": {} }"}},
		{`{"}":"{\"}"}{`, []string{`{"}":"{\"}"}`}},
		{`{"a":"\\"}{}`, []string{`{"a":"\\"}`, "{}"}},
		{"x{}\n{}", []string{garbage, "{}"}},
		{"}\n{}", []string{garbage, "{}"}},
		{"{\"a\n{}", []string{"! " + errNewline.Error(), "{}"}},
		{"{\"a\xff{}", []string{"{}"}},
		{"x\xff{}", []string{garbage, "{}"}},
		{strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
			[]string{strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)}},
		{strings.Repeat("[", maxDepth+1) + "\n{}", []string{tooDeep, "{}"}},
		{"{" + strings.Repeat(" ", maxText-2) + "}", []string{"{" + strings.Repeat(" ", maxText-2) +
			"}"}},
		{"{" + strings.Repeat(" ", maxText-1) + "}", []string{tooLong}},
	} {
		for _, step := range []int{1, 2, 3, 4096, 1 << 20} {
			if got := split([]byte(tc.in), step); !slices.Equal(got, tc.want) {
				t.Errorf("%.40q in steps of %d: got %.200q, want %.200q", tc.in, step, got, tc.want)
			}
		}
	}
}

// FuzzSplitter checks that texts do not depend on how the stream arrives, that they keep their
// bounds, that nothing is lost, and that a sequence of JSON objects is split exactly.
func FuzzSplitter(f *testing.F) {
	for _, s := range []string{
		`{"execute":"qmp_capabilities"}`, "{}{}", "{\"a\xff{}", "x\n{}", `{"a":"\\\""}[[]]`,
		"{\"a\n}", "\x00\x01{", "{]}", "}", strings.Repeat("[", maxDepth+2),
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		got := split(in, int(step)+1)
		if whole := split(in, len(in)+1); !slices.Equal(got, whole) {
			t.Fatalf("in steps of %d: %q, at once: %q", int(step)+1, got, whole)
		}
		rest := in
		for _, text := range got {
			if strings.HasPrefix(text, "! ") {
				continue
			}
			if len(text) > maxText || (text[0] != '{' && text[0] != '[') {
				t.Fatalf("bad text %q", text)
			}
			i := bytes.Index(rest, []byte(text))
			if i < 0 {
				t.Fatalf("text %q is not in the rest of the input, %q", text, rest)
			}
			rest = rest[i+len(text):]
			if text[0] == '{' {
				parseRequest([]byte(text))
			}
		}
		if want, ok := objects(in); ok && !slices.Equal(got, want) {
			t.Fatalf("got %q, encoding/json finds %q", got, want)
		}
	})
}

// objects decodes in with encoding/json; false: it is not a sequence of objects within the
// splitter's bounds.
func objects(in []byte) (out []string, ok bool) {
	if len(in) >= maxText || bytes.Count(in, []byte("{"))+bytes.Count(in, []byte("[")) > maxDepth ||
		bytes.IndexByte(in, 0xff) >= 0 {
		return nil, false
	}
	for d := json.NewDecoder(bytes.NewReader(in)); ; {
		var raw json.RawMessage
		if err := d.Decode(&raw); err == io.EOF {
			return out, true
		} else if err != nil || raw[0] != '{' {
			return nil, false
		}
		out = append(out, string(raw))
	}
}

// FuzzParseRequest checks that any text gives a request or an error, that the reply is one valid
// line, and that its id is the request's.
func FuzzParseRequest(f *testing.F) {
	for _, s := range []string{
		`{"execute":"a","arguments":{},"id":1}`, `[]`, `{"id":{"a":[1]}}`, `{"execute":1}`, `{"a":`,
		`{"execute":"` + "\xff" + `"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) == 0 || len(text) > maxText {
			return
		}
		r, failure := parseRequest(text)
		if failure == nil && (!json.Valid(r.Args) || r.Args[0] != '{') {
			t.Fatalf("arguments %q", r.Args)
		}
		line, _ := encodeReply(r.ID, r.Execute, failure)
		if len(line) > maxText || bytes.IndexByte(line, '\n') != len(line)-1 || !json.Valid(line) {
			t.Fatalf("reply %q", line)
		}
	})
}
