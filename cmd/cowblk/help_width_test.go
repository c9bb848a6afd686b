package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// The help of every command fits the terminal, and 100 columns without one. It keeps its words.
func TestHelpWidth(t *testing.T) {
	s := newScript(t)
	for _, columns := range []int{0, 80, 200} {
		want := 100
		if columns == 80 {
			want = 80
		}
		for _, c := range append([]*cobra.Command{{Use: ""}}, newRoot(newApp()).Commands()...) {
			var out, errOut bytes.Buffer
			a := s.app(&out, &errOut)
			a.width = func(any) int { return columns }
			if code := run([]string{"help", c.Name()}[:1+min(1, len(c.Name()))],
				a); code != exitOK {
				t.Fatalf("help %s: exit %d: %s", c.Name(), code, &errOut)
			}
			// Examples are for pasting, and so is the line that shows the usage.
			text, examples, _ := strings.Cut(out.String(), "\nExamples:\n")
			_, flags, _ := strings.Cut(examples, "\nFlags:\n")
			for line := range strings.SplitSeq(text+flags, "\n") {
				if len(line) > want && !strings.HasPrefix(line, "  cowblk ") {
					t.Errorf("help %s: %d columns: %s", c.Name(), len(line), line)
				}
			}
			long := strings.Join(strings.Fields(c.Long), " ")
			if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got,
				long) {
				t.Errorf("help %s lacks words of its text", c.Name())
			}
		}
	}
}
