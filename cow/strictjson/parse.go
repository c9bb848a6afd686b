package strictjson

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth bounds the nesting of objects and arrays.
const MaxDepth = 32

// kind is the kind of a value.
type kind string

const (
	kindObject kind = "an object"
	kindArray  kind = "an array"
	kindString kind = "a string"
	kindNumber kind = "a number"
	kindBool   kind = "true or false"
	kindNull   kind = "null"
)

// value is one JSON value with its content.
type value struct {
	kind    kind
	raw     []byte // its text
	text    string // of a string; of a number its digits
	yes     bool   // of a kindBool
	names   []string
	members []*value // of an object, as names; of an array
}

func (v *value) member(name string) *value {
	for i, n := range v.names {
		if n == name {
			return v.members[i]
		}
	}
	return nil
}

// parse parses one value, with nothing but white space behind it (RFC 8259).
func parse(data []byte) (*value, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("expected UTF-8, found other bytes")
	}
	p := &parser{data: data}
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.at < len(data) {
		return nil, p.fail("the end of the document")
	}
	return v, nil
}

type parser struct {
	data []byte
	at   int
}

func (p *parser) fail(expected string) error {
	if p.at >= len(p.data) {
		return fmt.Errorf("offset %d: expected %s, found the end of the document", p.at, expected)
	}
	r, _ := utf8.DecodeRune(p.data[p.at:])
	return fmt.Errorf("offset %d: expected %s, found %q", p.at, expected, r)
}

func (p *parser) space() {
	for p.at < len(p.data) {
		switch p.data[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// take skips c if it is next, and reports whether it was.
func (p *parser) take(c byte) bool {
	if p.at < len(p.data) && p.data[p.at] == c {
		p.at++
		return true
	}
	return false
}

func (p *parser) value(depth int) (v *value, err error) {
	if depth > MaxDepth {
		return nil, fmt.Errorf("offset %d: expected at most %d values one in another, found more",
			p.at, MaxDepth)
	}
	p.space()
	start := p.at
	v = new(value)
	switch {
	case p.take('{'):
		v.kind = kindObject
		err = p.object(v, depth)
	case p.take('['):
		v.kind = kindArray
		err = p.list(']', func() error {
			e, err := p.value(depth + 1)
			v.members = append(v.members, e)
			return err
		})
	case p.take('"'):
		v.kind = kindString
		v.text, err = p.text()
	case p.word("true"):
		v.kind, v.yes = kindBool, true
	case p.word("false"):
		v.kind = kindBool
	case p.word("null"):
		v.kind = kindNull
	default:
		v.kind = kindNumber
		err = p.number()
		v.text = string(p.data[start:p.at])
	}
	v.raw = p.data[start:p.at]
	return v, err
}

func (p *parser) object(v *value, depth int) error {
	seen := map[string]bool{}
	return p.list('}', func() error {
		if p.space(); !p.take('"') {
			return p.fail("the name of a member")
		}
		name, err := p.text()
		if err != nil {
			return err
		}
		if seen[name] {
			return fmt.Errorf("member %q: expected once in an object, found twice", name)
		}
		seen[name] = true
		if p.space(); !p.take(':') {
			return p.fail("a colon")
		}
		m, err := p.value(depth + 1)
		v.names, v.members = append(v.names, name), append(v.members, m)
		return err
	})
}

// list parses elements with commas between them, and the end.
func (p *parser) list(end byte, element func() error) error {
	if p.space(); p.take(end) {
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		p.space()
		if p.take(end) {
			return nil
		}
		if !p.take(',') {
			return p.fail("a comma or " + strconv.QuoteRune(rune(end)))
		}
	}
}

func (p *parser) word(w string) bool {
	if len(p.data)-p.at < len(w) || string(p.data[p.at:p.at+len(w)]) != w {
		return false
	}
	p.at += len(w)
	return true
}

// number parses an integer: documents have no other numbers.
func (p *parser) number() error {
	start := p.at
	p.take('-')
	digits := p.at
	for p.at < len(p.data) && p.data[p.at] >= '0' && p.data[p.at] <= '9' {
		p.at++
	}
	switch {
	case p.at == digits && start == digits:
		return p.fail("a value")
	case p.at == digits, p.data[digits] == '0' && (p.at > digits+1 || start < digits):
		return fmt.Errorf("offset %d: expected an integer without leading zeros", start)
	}
	if p.at < len(p.data) && (p.data[p.at] == '.' || p.data[p.at] == 'e' || p.data[p.at] == 'E') {
		return fmt.Errorf("offset %d: expected an integer, found a fraction or an exponent", start)
	}
	return nil
}

// text parses a string behind its first quotation mark.
func (p *parser) text() (string, error) {
	var out []byte
	for p.at < len(p.data) {
		c := p.data[p.at]
		switch {
		case c == '"':
			p.at++
			return string(out), nil
		case c < 0x20:
			return "", p.fail("no control character in a string")
		case c == '\\':
			p.at++
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, c)
			p.at++
		}
	}
	return "", p.fail("the end of a string")
}

func (p *parser) escape() (rune, error) {
	if p.at >= len(p.data) {
		return 0, p.fail("an escape sequence")
	}
	c := p.data[p.at]
	p.at++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		r, err := p.unit()
		if err != nil || !utf16.IsSurrogate(r) {
			return r, err
		}
		if p.take('\\') && p.take('u') {
			low, err := p.unit()
			if err != nil {
				return 0, err
			}
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				return pair, nil
			}
		}
		return 0, fmt.Errorf("offset %d: expected both halves of a character, found one", p.at)
	}
	p.at--
	return 0, p.fail("an escape sequence")
}

// unit parses the four digits of \u.
func (p *parser) unit() (rune, error) {
	if len(p.data)-p.at < 4 {
		p.at = len(p.data)
		return 0, p.fail("four hexadecimal digits")
	}
	for _, c := range p.data[p.at : p.at+4] {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
			return 0, p.fail("four hexadecimal digits")
		}
	}
	n, err := strconv.ParseUint(string(p.data[p.at:p.at+4]), 16, 16)
	p.at += 4
	return rune(n), err
}
