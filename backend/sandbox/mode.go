package sandbox

import (
	"cmp"
	"fmt"
)

// Mode says whether a process is confined.
type Mode string

const (
	Off     Mode = ""        // not confined
	On      Mode = "on"      // as far as this kernel can
	Require Mode = "require" // fails if this kernel cannot
)

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) { return []byte(cmp.Or(m, "off")), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(text []byte) error {
	switch s := Mode(text); s {
	case "off":
		*m = Off
	case On, Require:
		*m = s
	default:
		return fmt.Errorf("%q: expected off, on or require", text)
	}
	return nil
}
