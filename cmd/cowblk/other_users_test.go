package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

// Another user cannot open anything in a store whose disk is served, and so cannot lock a file or
// directory. Serving closes a store of an earlier version to other users.
func TestOtherUsersHoldNoLock(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs two users: run as root")
	}
	for _, earlier := range []bool{false, true} {
		dir := shortDir(t)
		test.Must(t, os.Chmod(dir, 0o755))
		st := filepath.Join(dir, "s")
		image := filepath.Join(dir, "image")
		test.Must(t, os.WriteFile(image, pattern(1, 64<<10), 0o644))
		command(t, st, "import", image, "img")
		command(t, st, "create", "a", "--from", "img")
		command(t, st, "promote", "a", "--tag", "t")
		if earlier {
			if out, err := exec.Command("chmod", "-R", "go+rX", st).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		p, f := startServing(t, st, "a")
		var all []string
		err := filepath.WalkDir(st, func(path string, d fs.DirEntry, err error) error {
			if d.Type() != fs.ModeSocket {
				all = append(all, path)
			}
			return err
		})
		test.Must(t, err)
		cmd := exec.Command("sh", "-c",
			`while read -r p; do (exec 9<"$p" && flock -n -x 9 && echo "$p") 2>/dev/null; done; echo end`)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody,
			Gid: nobody}}
		cmd.Stdin = strings.NewReader(strings.Join(all, "\n") + "\n")
		out, err := cmd.CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "end" {
			t.Errorf("an earlier version's store: %v: of %d files and directories another user holds, or could hold: %v\n%s", earlier, len(all), err, out)
		}
		f.Close()
		p.end(t)
	}
}
