package shell

import (
	"os/exec"
	"testing"
)

var words = map[string]string{
	"":             "''",
	"vm1@t":        "vm1@t",
	"a=b,c":        "a=b,c",
	"=ls":          "'=ls'",
	"a b":          "'a b'",
	"it's":         `'it'\''s'`,
	"$x`y`\"z\"!*": "'$x`y`\"z\"!*'",
	"~root":        "'~root'",
	"größe 日本":     "'größe 日本'",
	"a\nb":         `"$(printf 'a\012b')"`,
	"a'\t%d\\":     `"$(printf 'a\047\011%%d\\')"`,
	"\xff\xfe":     `"$(printf '\377\376')"`,
	"-\x01":        `"$(printf '\055\001')"`,
	"a\x017":       `"$(printf 'a\0017')"`,
	"\u202e.raw":   `"$(printf '\342\200\256.raw')"`, // turns the direction of writing
	"end\n\n":      `'end'"${IFS#??}${IFS#??}"`,
	"a\rend\n":     `"$(printf 'a\015end')""${IFS#??}"`,
	"\n":           `"${IFS#??}"`,
	"{a,b}":        "'{a,b}'",
	"#x;y&z|(w)<>": "'#x;y&z|(w)<>'",
}

func TestWord(t *testing.T) {
	for in, want := range words {
		if got := Word(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// The installed shells read the word as the path, whatever is in it.
func TestShellsReadWords(t *testing.T) {
	found := 0
	for _, sh := range []string{"sh", "dash", "bash", "busybox"} {
		path, err := exec.LookPath(sh)
		if err != nil {
			continue
		}
		found++
		args := []string{"-c"}
		if sh == "busybox" {
			args = []string{"sh", "-c"}
		}
		for in := range words {
			// The dot keeps newlines at the end.
			out, err := exec.Command(path,
				append(args, `set -- `+Word(in)+`; printf '%s.%s' "$1" $#`)...).Output()
			if err != nil || string(out) != in+".1" {
				t.Errorf("%s reads %s as %q, want %q: %v", sh, Word(in), out, in+".1", err)
			}
		}
	}
	if found == 0 {
		t.Fatal("no shell found")
	}
}

func TestPath(t *testing.T) {
	for in, want := range map[string]string{"-rf": "./-rf", "- x": "'./- x'", "/a b": "'/a b'",
		"a": "a"} {
		if got := Path(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	if got, want := Line("cowblk", "--store", "/a b", "check", "vm1"),
		"cowblk --store '/a b' check vm1"; got != want {
		t.Errorf("line %s, want %s", got, want)
	}
}
