package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/aio"
	"cowblk/internal/test"
)

// Versions agrees with Stat for each kind of name, in few files and in more than one ring holds.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(at("file"), []byte("abc"), 0o600),
		os.WriteFile(at("an odd\nname é"), nil, 0o600),
		os.Mkdir(at("directory"), 0o700),
		os.Symlink("file", at("link")),
		os.Symlink("missing", at("dangling")),
		os.Symlink("loop", at("loop")),
		unix.Mkfifo(at("fifo"), 0o600),
	} {
		test.Must(t, err)
	}
	kinds := []string{
		at("file"), at("an odd\nname é"), at("directory"), at("link"), at("dangling"), at("loop"),
		at("fifo"), at("missing"),
		at("file/below"), "/dev/null", "", at(string(make([]byte, 300))),
	}
	for _, n := range []int{0, 1, len(kinds), 100, aio.MaxDepth + 100} {
		names := make([]string, n)
		for i := range names {
			names[i] = kinds[i%len(kinds)]
		}
		got := OS{}.Versions(names)
		if len(got) != n {
			t.Fatalf("%d names, %d versions", n, len(got))
		}
		want := VersionsByStat(OS{}, names)
		for i, name := range names {
			if (got[i] == nil) != (want[i] == nil) || got[i] != nil && *got[i] != *want[i] {
				t.Errorf("%d names, %q: %v, Stat says %v", n, name, got[i], want[i])
			}
		}
	}
	if v := (OS{}).Versions([]string{at("file")})[0]; v == nil || v.Size != 3 {
		t.Errorf("a file of 3 bytes: %+v", v)
	}
}

// A file that changes has another version.
func TestVersionsOfChangedFiles(t *testing.T) {
	dir := t.TempDir()
	names := make([]string, 2*manyFiles)
	for i := range names {
		names[i] = filepath.Join(dir, fmt.Sprint(i))
		test.Must(t, os.WriteFile(names[i], []byte("old"), 0o600))
	}
	before := OS{}.Versions(names)
	test.Must(t, os.WriteFile(names[5], []byte("newer"), 0o600))
	for i, v := range (OS{}).Versions(names) {
		if changed := *v != *before[i]; changed != (i == 5) {
			t.Errorf("file %d: changed %v: %+v, before %+v", i, changed, v, before[i])
		}
	}
}

func BenchmarkVersions(b *testing.B) {
	dir := b.TempDir()
	for _, n := range []int{10, 16, 100, 1000} {
		names := make([]string, n)
		for i := range names {
			names[i] = filepath.Join(dir, fmt.Sprint(i))
			test.Must(b, os.WriteFile(names[i], nil, 0o600))
		}
		b.Run(fmt.Sprintf("files=%d/stat", n), func(b *testing.B) {
			for b.Loop() {
				VersionsByStat(OS{}, names)
			}
		})
		b.Run(fmt.Sprintf("files=%d/ring", n), func(b *testing.B) {
			results, errs := make([]unix.Statx_t, n), make([]unix.Errno, n)
			for b.Loop() {
				test.Must(b, aio.Stat(names, results, errs))
			}
		})
	}
}
