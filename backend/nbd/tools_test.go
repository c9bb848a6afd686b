package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// runTool runs an installed NBD client.
func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 2*waitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// toolSizes are sizes of disks in bytes, with and without a partial block, some larger than one
// piece of a READ.
var toolSizes = []int{512, 4096, 1<<20 + 512, 5<<20 - 1536}

func TestTools(t *testing.T) {
	disks := map[string]Disk{}
	for _, n := range toolSizes {
		disks[fmt.Sprintf("vm1@tag.%d", n)] = randomDisk(n)
	}
	s, unix := start(t, Options{}, disks)
	tcp, err := s.Listen(Address{Network: "tcp", Host: "127.0.0.1"})
	test.Must(t, err)
	for _, at := range []Address{unix, tcp} {
		for name, d := range disks {
			t.Run(at.Network+"/"+name,
				func(t *testing.T) { checkTools(t, at.URI(name), name, d.(*memDisk).data) })
		}
	}
}

func checkTools(t *testing.T, uri, name string, want []byte) {
	dir := t.TempDir()
	for _, option := range []string{"--is=read-only", "--can=multi-conn"} {
		runTool(t, "nbdinfo", option, uri)
	}
	var info struct {
		Exports []struct {
			Name  string `json:"export-name"`
			Size  int    `json:"export-size"`
			Min   int    `json:"block_size_minimum"`
			Pref  int    `json:"block_size_preferred"`
			Max   int    `json:"block_size_maximum"`
			RO    bool   `json:"is_read_only"`
			Flush bool   `json:"can_flush"`
		} `json:"exports"`
	}
	test.Must(t, json.Unmarshal([]byte(runTool(t, "nbdinfo", "--json", uri)), &info))
	if len(info.Exports) != 1 {
		t.Fatalf("nbdinfo: %+v", info)
	}
	if e := info.Exports[0]; e.Name != name || e.Size != len(want) || e.Min != 1 ||
		e.Pref != 4096 || e.Max != maxRequest || !e.RO || e.Flush {
		t.Errorf("nbdinfo: %+v", e)
	}

	copied := filepath.Join(dir, "nbdcopy")
	runTool(t, "nbdcopy", uri, copied)
	check := func(file string) {
		t.Helper()
		got, err := os.ReadFile(file)
		test.Must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from the %d exported", filepath.Base(file), len(got),
				len(want))
		}
	}
	check(copied)
	runTool(t, "nbdcopy", "--request-size=33554432", "--connections=3", uri, copied)
	check(copied)

	raw, qcow := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	runTool(t, "qemu-img", "convert", "-O", "raw", uri, raw)
	check(raw)
	runTool(t, "qemu-img", "convert", "-O", "qcow2", uri, qcow)
	for format, file := range map[string]string{"raw": raw, "qcow2": qcow} {
		if out := runTool(t, "qemu-img", "compare", "-f", "raw", "-F", format, uri,
			file); !strings.Contains(out, "identical") {
			t.Errorf("qemu-img compare: %s", out)
		}
	}
	out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", uri).CombinedOutput()
	if err == nil {
		t.Errorf("qemu-io could open the export for writing: %s", out)
	}
}

func TestToolsList(t *testing.T) {
	_, a := start(t, Options{}, map[string]Disk{"vm1@a": randomDisk(512), "vm1@b": randomDisk(1024),
		"vm2": randomDisk(2048)})
	var info struct {
		Exports []struct {
			Name string `json:"export-name"`
			Size int    `json:"export-size"`
		} `json:"exports"`
	}
	test.Must(t, json.Unmarshal([]byte(runTool(t, "nbdinfo", "--list", "--json", a.URI(""))),
		&info))
	if got := fmt.Sprint(info.Exports); got != "[{vm1@a 512} {vm1@b 1024} {vm2 2048}]" {
		t.Errorf("found %s", got)
	}
	out, err := exec.Command("nbdinfo", a.URI("vm3")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "for export: vm3") {
		t.Errorf("nbdinfo of an unknown name: %v: %s", err, out)
	}
}

func TestToolsDefaultExport(t *testing.T) {
	_, a := start(t, Options{}, map[string]Disk{"vm1@a": randomDisk(512)})
	if out := runTool(t, "nbdinfo", "--size", a.URI("")); strings.TrimSpace(out) != "512" {
		t.Errorf("found %q", out)
	}
}
