package store

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"cowblk/cow/finding"
)

// MaxName is the maximum length of image, disk and tag names, in bytes. It fits a socket path (108
// bytes).
const MaxName = 64

// CheckName returns an ErrInvalid unless name is valid for an image, a disk or a tag (kind, for the
// message): [a-zA-Z0-9][a-zA-Z0-9_.-]*, at most MaxName bytes. A valid name is a safe file name.
func CheckName(kind, name string) error {
	switch {
	case name == "":
		return finding.Invalidf("%s name is empty", kind)
	case len(name) > MaxName:
		return finding.Invalidf("%s name %q is too long: %d bytes, at most %d", kind, name,
			len(name), MaxName)
	}
	if disk, tag, tagged := strings.Cut(name, "@"); tagged && kind != "tag" &&
		CheckName("tag", disk) == nil && CheckName("tag", tag) == nil {
		return finding.Invalidf(
			"%s name %q: expected a name alone, found NAME@TAG, a tag of a disk, which is not accepted here", kind, name)
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			found := fmt.Sprintf("byte 0x%02x", c)
			if r, n := utf8.DecodeRuneInString(name[i:]); r != utf8.RuneError || n > 1 {
				found = "character " + strconv.QuoteRune(r)
			}
			return finding.Invalidf(
				"%s name %q: %s at position %d is not allowed; use letters, digits, and after the first also _ . -", kind, name, found, i+1)
		}
	}
	return nil
}

// Ref names an image, a disk or one tag of a disk: "vm1@before-upgrade".
type Ref struct {
	Name string
	Tag  string // empty: none
}

// String returns the form that ParseRef reads.
func (r Ref) String() string {
	if r.Tag == "" {
		return r.Name
	}
	return r.Name + "@" + r.Tag
}

// ParseRef parses NAME or NAME@TAG. Error: ErrInvalid.
func ParseRef(s string) (Ref, error) {
	name, tag, tagged := strings.Cut(s, "@")
	r := Ref{Name: name, Tag: tag}
	if err := CheckName("image or disk", name); err != nil {
		return Ref{}, fmt.Errorf("%q: %w", s, err)
	}
	if tagged {
		if err := CheckName("tag", tag); err != nil {
			return Ref{}, fmt.Errorf("%q: %w", s, err)
		}
	}
	return r, nil
}

// Kinds of objects.
const (
	KindImage = "image"
	KindBase  = "base" // a file or device used in place
	KindZeros = "zeros"
	KindLayer = "layer"
	KindDisk  = "disk"
)
