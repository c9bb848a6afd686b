package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

// input is a kind of file passed to "cowblk import".
type input struct {
	name    string // of the case; the file is "in"
	options string
	// data is the content of the file. nil: it is made by the function make or the shell command
	// sh, in which "raw" is a disk image of 1 MiB.
	data []byte
	make func(path string) error
	sh   string
}

// magic returns 4 KiB with text at an offset, from the end if negative.
func magic(text string, at int) []byte {
	p := make([]byte, 4096)
	if at < 0 {
		at += len(p)
	}
	copy(p[at:], text)
	return p
}

// patched returns a shell command that makes a qcow2 and overwrites some bytes.
func patched(options string, at int, bytes string) string {
	return fmt.Sprintf("qemu-img convert -O qcow2 %s raw in && printf '%s' | dd of=in bs=1 seek=%d conv=notrunc status=none", options, bytes, at)
}

var inputs = []input{
	{name: "raw", sh: "cp raw in"},
	{name: "raw, all zeros", sh: "truncate -s 1M in"},
	{name: "raw, cut off", sh: "head -c 1000 raw >in"},
	{name: "empty", data: []byte{}},
	{name: "MBR", data: magic("\x55\xaa", 510)},
	{name: "GPT", data: magic("EFI PART", 512)},
	{name: "ext4", data: magic("\x53\xef", 0x438)},
	{name: "XFS", data: magic("XFSB", 0)},
	{name: "squashfs", data: magic("hsqs", 0)},
	{name: "ISO 9660", data: append(make([]byte, 32768), magic("\x01CD001", 0)...)},
	{name: "LVM", data: magic("LABELONE", 512)},
	{name: "LUKS", data: magic("LUKS\xba\xbe\x00\x02", 0)},
	{name: "LUKS, as raw", options: "--format raw", data: magic("LUKS\xba\xbe\x00\x02", 0)},

	{name: "qcow2", sh: "qemu-img convert -O qcow2 raw in"},
	{name: "qcow2, version 2", sh: "qemu-img convert -O qcow2 -o compat=0.10 raw in"},
	{name: "qcow2, compressed", sh: "qemu-img convert -c -O qcow2 raw in"},
	{name: "qcow2, compressed with zstd",
		sh: "qemu-img convert -c -O qcow2 -o compression_type=zstd raw in"},
	{name: "qcow2, subclusters",
		sh: "qemu-img convert -O qcow2 -o extended_l2=on,cluster_size=128k raw in"},
	{name: "qcow2, clusters of 512 bytes",
		sh: "qemu-img convert -O qcow2 -o cluster_size=512 raw in"},
	{name: "qcow2, clusters of 2 MiB", sh: "qemu-img convert -O qcow2 -o cluster_size=2M raw in"},
	{name: "qcow2, lazy refcounts", sh: "qemu-img convert -O qcow2 -o lazy_refcounts=on raw in"},
	{name: "qcow2, preallocated",
		sh: "qemu-img create -q -f qcow2 -o preallocation=metadata in 1M"},
	{name: "qcow2, snapshot in it",
		sh: "qemu-img convert -O qcow2 raw in && qemu-img snapshot -c s in"},
	{name: "qcow2, overlay", sh: "qemu-img create -q -f qcow2 -b raw -F raw in"},
	{name: "qcow2, overlay, --backing", options: "--backing",
		sh: "qemu-img create -q -f qcow2 -b raw -F raw in"},
	{name: "qcow2, overlay of a FIFO, --backing", options: "--backing",
		sh: "qemu-img create -q -f qcow2 -b raw -F raw in && mkfifo pipe && qemu-img rebase -u -b pipe -F raw in"},
	{name: "qcow2, overlay of a host file",
		sh: "qemu-img create -q -f qcow2 -u -b /etc/shadow -F raw in 1M"},
	{name: "qcow2, overlay of nothing, --backing", options: "--backing",
		sh: "qemu-img create -q -f qcow2 -u -b nosuch -F raw in 1M"},
	{name: "qcow2, overlay over NBD, --backing", options: "--backing",
		sh: "qemu-img create -q -f qcow2 -u -b nbd://localhost/x -F raw in 1M"},
	{name: "qcow2, overlay over JSON, --backing", options: "--backing",
		sh: `qemu-img create -q -f qcow2 -u -b 'json:{"driver":"raw","file":{"driver":"file","filename":"raw"}}' -F raw in 1M`},
	{name: "qcow2, external data file",
		sh: "qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on in 1M"},
	{name: "qcow2, encrypted with LUKS", sh: patched("", 35, `\002`)},
	{name: "qcow2, encrypted with AES", sh: patched("", 35, `\001`)},
	{name: "qcow2, marked dirty", sh: patched("", 79, `\001`)},
	{name: "qcow2, marked corrupt", sh: patched("", 79, `\002`)},
	{name: "qcow2, unknown feature", sh: patched("", 72, `\001`)},
	{name: "qcow2, version 4", sh: patched("", 7, `\004`)},
	{name: "qcow2, L1 table lost", sh: patched("", 40, `\000\000\000\000\000\000\000\001`)},
	{name: "qcow2, L1 entry lost", sh: patched("", 196608, `\200\000\000\000\000\000\022\000`)},
	{name: "qcow2, cut in the header",
		sh: "qemu-img convert -O qcow2 raw all && head -c 60 all >in"},
	{name: "qcow2, cut in the tables",
		sh: "qemu-img convert -O qcow2 raw all && head -c 200000 all >in"},
	{name: "qcow2, cut in the data",
		sh: "qemu-img convert -O qcow2 raw all && head -c 500000 all >in"},
	{name: "qcow2, cut in compressed data",
		sh: "qemu-img convert -c -O qcow2 raw all && head -c 400000 all >in"},
	{name: "qcow2, as raw", options: "--format raw",
		sh: "qemu-img create -q -f qcow2 in 1M && truncate -s %512 in"},
	{name: "raw, as qcow2", options: "--format qcow2", sh: "cp raw in"},

	{name: "qcow", sh: "qemu-img convert -O qcow raw in"},
	{name: "QED", sh: "qemu-img convert -O qed raw in"},
	{name: "VMDK, sparse", sh: "qemu-img convert -O vmdk raw in"},
	{name: "VMDK, streamed", sh: "qemu-img convert -O vmdk -o subformat=streamOptimized raw in"},
	{name: "VMDK, flat", sh: "qemu-img create -q -f vmdk -o subformat=monolithicFlat in 1M"},
	{name: "VDI", sh: "qemu-img convert -O vdi raw in"},
	{name: "VHDX", sh: "qemu-img convert -O vhdx raw in"},
	{name: "VHD, dynamic", sh: "qemu-img convert -O vpc raw in"},
	{name: "VHD, fixed", sh: "qemu-img convert -O vpc -o subformat=fixed raw in"},
	{name: "Parallels", sh: "qemu-img convert -O parallels raw in"},
	{name: "Bochs", data: magic("Bochs Virtual HD Image", 0)},
	{name: "cloop", data: magic("#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0", 0)},
	{name: "DMG", data: magic("koly\x00\x00\x00\x04", -512)},
	{name: "Android sparse image", data: magic("\x3a\xff\x26\xed\x01\x00", 0)},
	{name: "Expert Witness", data: magic("EVF\x09\x0d\x0a\xff\x00", 0)},
	{name: "partclone", data: magic("partclone-image", 0)},
	{name: "Proxmox VMA", data: magic("VMA\x00\x00\x00\x00\x01", 0)},

	{name: "gzip", sh: "gzip -nc raw >in"},
	{name: "xz", sh: "xz -c raw >in"},
	{name: "xz, padded", sh: "xz -c raw >in && truncate -s %512 in"},
	{name: "bzip2", sh: "bzip2 -c raw >in"},
	{name: "bzip2 of nothing, padded", sh: "bzip2 </dev/null >in && truncate -s %512 in"},
	{name: "zstd", sh: "zstd -qc raw >in"},
	{name: "zstd, padded", sh: "zstd -qc raw >in && truncate -s %512 in"},
	{name: "zstd behind a skippable frame",
		data: magic("\x5e\x2a\x4d\x18\x04\x00\x00\x00abcd\x28\xb5\x2f\xfd", 0)},
	{name: "lz4", sh: "lz4 -qc raw >in && truncate -s %512 in"},
	{name: "lz4, legacy", sh: "lz4 -lqc raw >in && truncate -s %512 in"},
	{name: "lzma", sh: "xz --format=lzma -c raw >in && truncate -s %512 in"},
	{name: "lzip", data: magic("LZIP\x01", 0)},
	{name: "lzop", data: magic("\x89LZO\x00\x0d\x0a\x1a\x0a", 0)},
	{name: "compress", data: magic("\x1f\x9d\x90", 0)},

	{name: "tar", sh: "tar -cf in raw"},
	{name: "tar, version 7", sh: "tar --format=v7 -cf in raw"},
	{name: "tar, as raw", options: "--format raw", sh: "tar -cf in raw"},
	{name: "tar.gz, padded", sh: "tar -czf in raw && truncate -s %512 in"},
	{name: "OVA", sh: "echo '<Envelope/>' >vm.ovf && tar -cf in vm.ovf raw"},
	{name: "cpio, newc", sh: "echo raw | cpio -oH newc 2>/dev/null >in"},
	{name: "cpio, binary", sh: "echo raw | cpio -oH bin 2>/dev/null >in"},
	{name: "zip", sh: "zip -q in.zip raw && mv in.zip in"},
	{name: "7z", data: magic("7z\xbc\xaf\x27\x1c\x00\x04", 0)},
	{name: "rar", data: magic("Rar!\x1a\x07\x01\x00", 0)},
	{name: "ar", sh: "ar rc in raw"},
	{name: "rpm", data: magic("\xed\xab\xee\xdb\x03\x00", 0)},

	{name: "HTML", data: magic("<!DOCTYPE html><title>404</title>", 0)},
	{name: "Git LFS pointer", data: magic("version https://git-lfs.github.com/spec/v1\n", 0)},
	{name: "ELF", data: magic("\x7fELF\x02\x01\x01", 0)},

	{name: "directory", make: func(p string) error { return os.Mkdir(p, 0o700) }},
	{name: "FIFO", make: func(p string) error { return syscall.Mkfifo(p, 0o600) }},
	{name: "character device", make: func(p string) error { return os.Symlink("/dev/zero", p) }},
	{name: "file of /proc", make: func(p string) error {
		return os.Symlink("/proc/self/environ", p)
	}},
	{name: "symbolic link to itself", make: func(p string) error { return os.Symlink("in", p) }},
	{name: "nothing", make: func(string) error { return nil }},
}

// inputTools are the programs that make the files.
var inputTools = []string{"qemu-img", "gzip", "xz", "bzip2", "zstd", "lz4", "tar", "cpio", "zip",
	"ar"}

// The outcome of import for each kind of file, one line each: exit code and message. The golden
// file shows it.
func TestInputs(t *testing.T) {
	for _, tool := range inputTools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed, which makes some of the files (Debian: %s); make deps installs all", tool, "qemu-utils xz-utils bzip2 zstd lz4 cpio zip binutils")
		}
	}
	const golden = "testdata/inputs.txt"
	path, err := filepath.Abs(golden)
	test.Must(t, err)
	noise := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise[65536:851968])
	binary.LittleEndian.PutUint32(noise, 0x8e66fab8)
	var got strings.Builder
	for _, in := range inputs {
		fmt.Fprintf(&got, "%s: %s\n", in.name, importOutcome(t, in, noise))
	}
	if os.Getenv(updateEnv) != "" {
		test.Must(t, os.WriteFile(path, []byte(got.String()), 0o644))
	}
	want, err := os.ReadFile(path)
	test.Must(t, err)
	w, g := strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")
	for i := range max(len(w), len(g)) {
		if a, b := line(w, i), line(g, i); a != b {
			t.Errorf("line %d\nwant %s\ngot  %s", i+1, a, b)
		}
	}
	if t.Failed() {
		t.Logf("%s=1 accepts what it is now", updateEnv)
	}
}

func line(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

// importOutcome imports one file into a new store.
func importOutcome(t *testing.T, in input, raw []byte) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "in")
	var err error
	switch {
	case in.data != nil:
		err = os.WriteFile(file, in.data, 0o600)
	case in.make != nil:
		err = in.make(file)
	default:
		if err = os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600); err == nil {
			cmd := exec.Command("sh", "-c", in.sh)
			cmd.Dir = dir
			var out []byte
			if out, err = cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%s: %w\n%s", in.sh, err, out)
			}
		}
	}
	test.Must(t, err, in.name)
	var out, errOut bytes.Buffer
	a := &app{
		in: strings.NewReader(""), out: &out, err: &errOut, terminal: func(any) bool {
			return false
		},
		getenv: func(k string) string {
			return map[string]string{"COWBLK_STORE": filepath.Join(dir, "store")}[k]
		},
	}
	code := run(append(strings.Fields("import "+in.options), file, "img"), a)
	text := strings.TrimSpace(out.String() + errOut.String())
	text = strings.NewReplacer(dir, "$DIR", "\n  ", " / ", "\n", " / ").Replace(text)
	text, _, _ = strings.Cut(text, " / next: ")
	if strings.Contains(in.options, "--format raw") {
		text, _, _ = strings.Cut(text, ", chunk digest") // the digest of a file that contains times
	}
	return fmt.Sprintf("exit %d: %s", code, text)
}
