package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// fileCommands name a file with a relative path. A server that accepts the file fails at the
// descriptor.
var fileCommands = [][]string{
	{"import", "FILE", "img"},
	{"create", "d", "--base", "FILE"},
	{"serve", "--fd", "99", "--blk-file", "FILE"},
	{"serve", "--fd", "99", "--read-only", "--blk-file", "FILE"},
}

// An advised command about a file works in another directory, and the command that gave the advice
// accepts its result.
func TestPastedAdvice(t *testing.T) {
	for _, program := range []string{"qemu-img", "tar", "gzip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s, which makes the files, is not installed; make deps installs it", program)
		}
	}
	t.Chdir(t.TempDir())
	raw := randomBytes(1, 1<<20)
	test.Must(t, os.WriteFile("raw", raw, 0o600))
	for _, tt := range []struct{ file, sh string }{
		{"disk:1.qed", `qemu-img convert -O qed raw "$PWD/$F"`},
		{"json:{}.vdi", `qemu-img convert -O vdi raw "$PWD/$F"`},
		{"nbd:x y.vpc", `qemu-img convert -O vpc -o force_size=on raw "$PWD/$F"`},
		{"-f.qed", `qemu-img convert -O qed raw "$PWD/$F"`},
		{"host:a.tar", `tar -cf - raw >"$F"`},
		{"r.tar", `tar -cf - raw >"$F"`},
		{"a:b.gz", `gzip -c raw >"$F"`},
	} {
		for _, words := range fileCommands {
			args := append([]string(nil), words...)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "FILE", tt.file)
			}
			if strings.HasPrefix(tt.file, "-") && args[0] == "import" {
				args[1] = "./" + tt.file
			}
			make := exec.Command("sh", "-c", tt.sh)
			make.Env = append(os.Environ(), "F="+tt.file)
			if out, err := make.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", tt.sh, err, out)
			}
			st := t.TempDir()
			code, text := runOutcome(st, args...)
			_, advice, found := strings.Cut(text, " first: ")
			if !found {
				_, advice, found = strings.Cut(text, "is in it: ")
			}
			advice, _, _ = strings.Cut(advice, "\n")
			if code != exitRefused || !found {
				t.Errorf("%q: exit %d: %s", args, code, text)
				continue
			}
			paste := exec.Command("sh", "-c", advice)
			paste.Dir = t.TempDir()
			if out, err := paste.CombinedOutput(); err != nil {
				t.Errorf("%q advises a command that fails in another directory: %s: %v: %s", args,
					advice, err, out)
				continue
			}
			for _, made := range []string{filepath.Join(paste.Dir, "raw"), tt.file + ".new.raw",
				tt.file + ".new.qcow2", tt.file + ".unpacked"} {
				if _, err := os.Stat(made); err != nil {
					continue
				}
				verb := []string{"import", made, "img"}
				if args[0] != "import" {
					verb = []string{"create", "d", "--base", made}
				}
				if verb[1][0] == '-' {
					verb[1] = "./" + verb[1]
				}
				if code, text := runOutcome(st, verb...); code != exitOK {
					t.Errorf("%q advises a command whose result is refused: %s: exit %d: %s", args,
						advice, code, text)
				}
				if filepath.Dir(made) == "." {
					os.Remove(made)
				}
			}
		}
	}
}

// A file whose size no disk can have gives the same text and exit code from every command.
func TestFilesOfUnusableSize(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, size := range map[string]int{"empty": 0, "odd": 513, "short": 1} {
		test.Must(t, os.WriteFile(name, make([]byte, size), 0o600))
		want := "fill the last sector of a copy up: truncate -s %512 COPY"
		if size == 0 {
			want = "it is empty: copy or download it again"
		}
		for _, words := range append([][]string{
			{"import", "FILE", "img", "--format", "raw"}, {"create", "d", "--base", "FILE",
				"--force"}, {"serve", "--fd", "99", "--blk-file", "FILE", "--format", "raw"},
		}, fileCommands...) {
			line := strings.ReplaceAll(strings.Join(words, " "), "FILE", name)
			code, text := runOutcome(t.TempDir(), strings.Fields(line)...)
			if code != exitRefused || !strings.Contains(text, want) || strings.Contains(text,
				"truncate") != (size > 0) || !strings.Contains(text,
				"a positive multiple of 512 bytes") {
				t.Errorf("%s: exit %d: %s", line, code, text)
			}
		}
	}
}

// Every command refuses files of these formats and names the format.
func TestRefusedFormats(t *testing.T) {
	t.Chdir(t.TempDir())
	st := t.TempDir()
	command(t, st, "create", "vm1", "--size", "1M")
	m := manifestOf(t, st, "vm1")
	layerMap, err := os.ReadFile(filepath.Join(st, m.Head().Map))
	test.Must(t, err)
	for found, data := range map[string][]byte{
		"cow (User-mode Linux)":  magic("OOOM\x00\x00\x00\x02", 0),
		"cow (User-mode Linux) ": magic("MOOO\x01\x00\x00\x00", 0),
		"PNG":                    magic("\x89PNG\r\n\x1a\n", 0),
		"zoo":                    magic("\xdc\xa7\xc4\xfd", 20),
		"arj":                    magic("\x60\xea\x29\x00\x1e\x0b\x01\x00\x10\x00\x02", 0),
		"map of a cowblk layer":  layerMap,
	} {
		test.Must(t, os.WriteFile("in", data, 0o600))
		for _, words := range fileCommands {
			args := strings.Fields(strings.ReplaceAll(strings.Join(words, " "), "FILE", "in"))
			if code, text := runOutcome(t.TempDir(), args...); code != exitRefused ||
				!strings.Contains(text, "found "+strings.TrimSpace(found)) &&
					!strings.Contains(text, "the map of a layer") {
				t.Errorf("%s: %q: exit %d: %s", found, args, code, text)
			}
		}
	}
}

// watch has no threshold "off", and does not offer it.
func TestWatchThresholdTexts(t *testing.T) {
	for _, text := range []string{"0", "0%", "off", "0K", "little", "1,5G"} {
		if code, runOutcome := runOutcome(t.TempDir(), "watch", "--threshold",
			text); code != exitUsage || strings.Contains(runOutcome, "or off") ||
			!strings.Contains(runOutcome, "such as 5% or 10G") {
			t.Errorf("%s: exit %d: %s", text, code, runOutcome)
		}
		if text != "off" {
			if code, runOutcome := runOutcome(t.TempDir(), "serve", "vm1", "--space-low",
				text); code != exitUsage || !strings.Contains(runOutcome, "or off") {
				t.Errorf("serve: %s: exit %d: %s", text, code, runOutcome)
			}
		}
	}
}
