package bytesize

import (
	"math"
	"testing"
)

// Parse reads what Text formats, and refuses invalid sizes; the tests of cmd/cowblk have more
// cases.
func TestText(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1", 1023: "1023", 1024: "1K",
		3 << 29: "1536M", 1 << 60: "1E", math.MaxInt64: "9223372036854775807"} {
		text := Text(n)
		if again, err := Parse(text, 1, math.MaxInt64); text != want || err != nil || again != n {
			t.Errorf("%d: %q, want %q; read as %d, %v", n, text, want, again, err)
		}
	}
	if v, err := Parse("1025", 1, 1024); err == nil {
		t.Errorf("over the limit: %d", v)
	}
}
