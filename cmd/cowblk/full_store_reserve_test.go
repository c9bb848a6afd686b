package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// reserveFiles returns the names of the files of a store's reserve, which are numbers.
func reserveFiles(t *testing.T, st string) (names []string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(st, "reserve"))
	test.Must(t, err)
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names
}

// Other commands on a full file system, however many, leave half of the reserve (files 00 to 11)
// for the maps of served disks, so that serving ends in order. A command that fails says how to
// free space.
func TestReserveIsKeptForServedMaps(t *testing.T) {
	if !canMount(t) {
		return
	}
	for _, k := range fullKinds {
		if k.size > 0 && os.Getuid() != 0 {
			continue
		}
		t.Run(k.name, k.keepsReserveForMaps)
	}
}

func (k *fullKind) keepsReserveForMaps(t *testing.T) {
	m := k.mount(t)
	st := filepath.Join(m, "s")
	command(t, st, "create", "a", "--size", "1G")
	for _, d := range []string{"b", "c"} {
		command(t, st, "create", d, "--size", "1M")
		command(t, st, "promote", d, "--tag", "t")
	}
	p := start(t, st, nil, "serve", "a", "--flush-interval", "24h")
	guest := dial(t, servedAt(t, st, "a"))
	for n := range int64(8) {
		writeAt(t, guest, n*sparse, pattern(byte(n+1), 4096))
	}
	before := reserveFiles(t, st)
	if len(before) < 12 {
		t.Fatalf("the reserve has the files %v", before)
	}
	rolledBack := 0
	for range 12 {
		k.exhaust(t, m)
		if code, text := outcomeOf(t, st, "rollback", "b@t", "--yes"); code == exitOK {
			rolledBack++
		} else if !strings.Contains(text, "no room left") || !strings.Contains(text,
			"larger file system") {
			t.Errorf("rollback: exit %d, no advice: %s", code, text)
		}
		if code, text := outcomeOf(t, st, "promote", "c"); code != exitOK && !strings.Contains(text,
			"larger file system") {
			t.Errorf("promote: exit %d, no advice: %s", code, text)
		}
		k.exhaust(t, m)
		at := filepath.Join(m, "nbd")
		_, _ = outcomeOf(t, st, "export", "b@nothing", "--listen", "unix:"+at)
	}
	left := reserveFiles(t, st)
	if k.inodes && rolledBack != 12 {
		t.Errorf("%d of 12 rollbacks: each returns the inodes that it has used", rolledBack)
	}
	t.Logf("%d of 12 rollbacks, reserve %v", rolledBack, left)
	if got := strings.Join(left, " "); !strings.HasPrefix(got,
		"00 01 02 03 04 05 06 07 08 09 10 11") {
		t.Errorf("expected files 00 to 11 of the reserve to be left, was %v, found %v", before,
			left)
	}
	k.exhaust(t, m)
	guest.Close()
	code, text := outcomeOf(t, st, "stop", "a", "--timeout", "40s")
	if served := p.outcome(t); code != exitOK || served != exitOK {
		t.Errorf("stop: exit %d, serve: exit %d\n%s\n%s", code, served, text, p.log.String())
	}
}

// rm needs no space at all, not even the reserve.
func TestRemoveWithoutSpace(t *testing.T) {
	if !canMount(t) {
		return
	}
	for _, k := range fullKinds {
		if k.size > 0 && os.Getuid() != 0 {
			continue
		}
		for _, args := range [][]string{{"rm", "--damaged", "damaged", "--yes"},
			{"rm", "img", "--yes"}, {"rm", "x", "y", "z", "--yes"}} {
			t.Run(k.name+"/"+strings.Join(args[:2], " "),
				func(t *testing.T) { k.removesWithoutSpace(t, args) })
		}
	}
}

func (k *fullKind) removesWithoutSpace(t *testing.T, args []string) {
	m := k.mount(t)
	st := filepath.Join(m, "s")
	image := filepath.Join(shortDir(t), "image")
	test.Must(t, os.WriteFile(image, pattern(9, 64<<10), 0o600))
	command(t, st, "import", image, "img")
	for _, d := range []string{"x", "y", "z", "damaged"} {
		command(t, st, "create", d, "--size", "1M")
	}
	command(t, st, "promote", "x", "--tag", "t")
	if args[1] == "--damaged" {
		test.Must(t, os.WriteFile(filepath.Join(st, "disks", "damaged", "disk.json"), []byte("{"),
			0o600))
	}
	test.Must(t, os.RemoveAll(filepath.Join(st, "reserve")))
	k.exhaust(t, m)
	command(t, st, args...)
	listed := command(t, st, "list")
	for _, name := range args[1:] {
		if !strings.HasPrefix(name, "-") && strings.Contains(listed, fmt.Sprintf("\n%s ", name)) {
			t.Errorf("%v: still there:\n%s", args, listed)
		}
	}
}
