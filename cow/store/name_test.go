package store

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"vm1": true, "debian-12": true, "a": true, "A_b.c-1": true,
		strings.Repeat("x", MaxName): true,
		"":                           false, ".": false, "..": false, ".x": false, "-x": false,
		"_x": false, "a/b": false,
		"a b": false,
		"a@b": false, "ä": false, "a\x00": false, "a\n": false,
		strings.Repeat("x", MaxName+1): false,
	} {
		if err := CheckName("disk", name); (err == nil) != ok || err != nil &&
			!errors.Is(err, ErrInvalid) {
			t.Errorf("CheckName(%q) = %v, want ok %v", name, err, ok)
		}
	}
}

func TestParseRef(t *testing.T) {
	for s, want := range map[string]Ref{"vm1": {Name: "vm1"}, "vm1@t": {Name: "vm1", Tag: "t"}} {
		if got, err := ParseRef(s); err != nil || got != want || got.String() != s {
			t.Errorf("ParseRef(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "@", "vm1@", "@t", "a@b@c", "../x"} {
		if got, err := ParseRef(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseRef(%q) = %v, %v; want ErrInvalid", s, got, err)
		}
	}
}
