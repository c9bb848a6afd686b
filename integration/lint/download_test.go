package lint

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxDownload bounds the download of "make build" with an empty module cache, in bytes.
const maxDownload = 20 << 20

// The binary needs only small modules. Tools, plots and tests are in another module. (go.mod files
// and checksums are not counted: they take less than a megabyte.)
func TestBuildDownloadsLittle(t *testing.T) {
	run := func(args ...string) string {
		cmd := exec.Command("go", args...)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %v: %v", args, err)
		}
		return string(out)
	}
	modules := strings.Fields(run("list", "-deps", "-f",
		`{{with .Module}}{{if .Version}}{{.Path}}@{{.Version}}{{end}}{{end}}`, "./cmd/cowblk"))
	slices.Sort(modules)
	modules = slices.Compact(modules)
	cache := filepath.Join(strings.TrimSpace(run("env", "GOMODCACHE")), "cache", "download")
	var sum int64
	for _, m := range modules {
		path, version, _ := strings.Cut(m, "@")
		var escaped strings.Builder // the encoding of golang.org/x/mod/module.EscapePath
		for _, r := range path {
			if 'A' <= r && r <= 'Z' {
				escaped.WriteByte('!')
				r += 'a' - 'A'
			}
			escaped.WriteRune(r)
		}
		info, err := os.Stat(filepath.Join(cache, escaped.String(), "@v", version+".zip"))
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	t.Logf("%d modules, %d bytes", len(modules), sum)
	if len(modules) < 5 || sum > maxDownload {
		t.Errorf("the %d modules of the binary have %d bytes, expected at most %d", len(modules),
			sum, maxDownload)
	}
}
