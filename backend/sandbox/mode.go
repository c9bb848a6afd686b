package sandbox

import "fmt"

// Mode says whether a process is confined.
type Mode uint8

const (
	Off     Mode = iota // not confined
	On                  // as far as this kernel can
	Require             // fails if this kernel cannot
)

var modeNames = [...]string{"off", "on", "require"}

func (m Mode) String() string {
	if int(m) >= len(modeNames) {
		return fmt.Sprintf("mode %d", m)
	}
	return modeNames[m]
}

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(text []byte) error {
	for i, name := range modeNames {
		if name == string(text) {
			*m = Mode(i)
			return nil
		}
	}
	return fmt.Errorf("%q: expected off, on or require", text)
}
