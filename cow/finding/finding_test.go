package finding

import (
	"encoding/json"
	"errors"
	"testing"
)

// TestFinding: the text and the JSON of a finding are read by people and programs.
func TestFinding(t *testing.T) {
	damaged, cause := errors.New("damaged"), errors.New("cause")
	for want, f := range map[string]*Finding{
		"/a: damaged: size: expected 1, found 2; restore it": New(damaged, "/a", "size", 1, 2,
			"restore it"),
		"/a: size: expected 1, found 2\nrestore it": New(nil, "/a", "size", 1, 2,
			"restore it"),
		`"/a\n": size: expected 1, found 2`: New(nil, "/a\n", "size", 1, 2, ""),
		"damaged: size: too large": New(damaged, "", "size: too large",
			"", "", ""),
	} {
		f.Cause = cause
		if f.Error() != want {
			t.Errorf("expected %q, found %q", want, f)
		}
		sentinel := f.Err
		if sentinel == nil {
			sentinel = ErrRefused
		}
		if !errors.Is(f, sentinel) || !errors.Is(f, cause) || errors.Is(f, ErrInvalid) {
			t.Errorf("%q: errors.Is does not see sentinel and cause", f)
		}
	}
	f := &Finding{Object: "o", File: "f", What: "w", Expected: "e", Found: "g", Status: Left,
		Remedy: "r", Advice: "a", Leftover: true, Err: damaged}
	text, err := json.Marshal(f)
	const want = `{"object":"o","file":"f","what":"w","expected":"e","found":"g","status":"left","remedy":"r","advice":"a","leftover":true}`
	if string(text) != want || err != nil {
		t.Errorf("expected %s, found %s, %v", want, text, err)
	}
}
