package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// A disk or an image whose document is missing, truncated or no file is damaged for all commands:
// it exists, and the error names the file.
func TestLostDocument(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"missing":   os.Remove,
		"truncated": func(p string) error { return os.Truncate(p, 10) },
		"empty":     func(p string) error { return os.Truncate(p, 0) },
		"link":      func(p string) error { os.Remove(p); return os.Symlink("nowhere", p) },
		"directory": func(p string) error { os.Remove(p); return os.Mkdir(p, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			st, golden := shortDir(t), filepath.Join(t.TempDir(), "golden")
			test.Must(t, os.WriteFile(golden, randomBytes(1, 1<<20), 0o600))
			command(t, st, "create", "d", "--size", "1M")
			command(t, st, "promote", "d", "--tag", "t")
			command(t, st, "import", golden, "img")
			disk, image := filepath.Join(st, "disks/d/disk.json"),
				filepath.Join(st, "images/img/image.json")
			for _, path := range []string{disk, image} {
				test.Must(t, lose(path))
			}
			for file, lines := range map[string][]string{
				disk: {"info d", "info d@t", "rm --yes d", "serve d", "promote d",
					"rollback --yes d@t", "export d@t --listen unix:nbd", "create e --from d@t",
					"trust-base d", "watch d --timeout 1ms", "resume d", "xml d", "qemu-args d",
					"run d", "tree d"},
				image: {"info img", "tree img", "create e --from img"},
			} {
				for _, line := range lines {
					if code, text := runOutcome(st, strings.Fields(line)...); code != exitRefused &&
						name != "directory" || !strings.Contains(text, file) ||
						strings.Contains(text, "not found in store") {
						t.Errorf("%s: exit %d: %s", line, code, text)
					}
				}
			}
			if _, text := runOutcome(st, "list"); !strings.Contains(text, "damaged") &&
				name != "directory" {
				t.Errorf("list: %s", text)
			}
			expectOutput(t, st, exitNotFound, "not found", "info", "nosuch")
			expectOutput(t, st, exitOK, "removed", "rm", "--damaged", "--yes", "d")
			expectOutput(t, st, exitNotFound, "not found", "info", "d")
		})
	}
}
