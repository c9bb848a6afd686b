package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"cowblk/cow/vfs"
)

// headOf returns the start of a file with texts at offsets, as a probe reads it.
func headOf(texts map[int]string) []byte {
	p := make([]byte, probeSize)
	for off, text := range texts {
		copy(p[off:], text)
	}
	return p
}

func deflated(data []byte) []byte {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	_, _ = w.Write(data)
	_ = w.Close()
	return b.Bytes()
}

// Files that file(1) or qemu-img know are recognized, and each has advice.
func TestFormatsRecognized(t *testing.T) {
	// gpg -c, and gpg -e for RSA of 2048 bits, each with the packet that follows.
	symmetric := "\x8c\x0d\x04\x09\x03\x02\x11\x22\x33\x44\x55\x66\x77\x88\xff\xd2\x40"
	public := "\x85\x01\x0c\x03" + strings.Repeat("\x11", 8) + "\x01" + strings.Repeat("\x22",
		268-10) + "\xd2\xc0"
	lzw := "\x1f\x9d\x90\x61\xc4\x8c\x21\x03"
	for _, tt := range []struct {
		name string
		head []byte
	}{
		{"vmdk (seSparse)", headOf(
			map[int]string{0: "\xbe\xba\xfe\xca\x00\x00\x00\x00\x01\x00\x00\x00\x02"})},
		{"vpc (VHD of fixed size, footer of 511 bytes)",
			headOf(map[int]string{probeSize - 511: "conectix"})},
		{"zpaq", headOf(map[int]string{0: "zPQ\x02\x01"})},
		{"zpaq", headOf(map[int]string{0: "7kSt\xa0\x31\x83\xd3\x8c\xb2\x28\xb0\xd3zPQ"})},
		{"lha", headOf(map[int]string{0: "\x24\xf5-lh5-", 20: "\x01"})},
		{"lha", headOf(map[int]string{0: "\x24\xf5-lz4-", 20: "\x00"})},
		{"arj", headOf(map[int]string{0: "\x60\xea\x2a\x00\x1e\x0b\x01\x00\x10\x00\x02"})},
		{"ace", headOf(map[int]string{7: "**ACE**"})},
		{"StuffIt", headOf(map[int]string{0: "SIT!\x00\x01", 10: "rLau"})},
		{"StuffIt", headOf(map[int]string{0: "StuffIt (c)1997-2002 Aladdin"})},
		{"zlib", deflated([]byte("a disk"))},
		{"zlib", append(deflated(make([]byte, 1<<20)), make([]byte, 4096)...)[:probeSize]},
		{"zlib", deflated(noise(1, 1<<20))[:probeSize]},
		{"zlib", deflated(bytes.Repeat(noise(2, 300), 9))},
		{"compress", headOf(map[int]string{0: lzw})},
		{"lzfse", headOf(map[int]string{0: "bvx-"})}, {"lzfse", headOf(map[int]string{0: "bvx1"})},
		{"lzfse", headOf(map[int]string{0: "bvx2"})}, {"lzfse", headOf(map[int]string{0: "bvxn"})},
		{"fsarchiver", headOf(map[int]string{0: "FsA0\x01\x02\x03\x04", 20: "FsArCh_002"})},
		{"dump(8)", headOf(map[int]string{0: "\x01", 24: "\x6c\xea"})},
		{"dump(8)", headOf(map[int]string{3: "\x01", 26: "\xea\x6c"})},
		{"dump(8)", headOf(map[int]string{0: "\x01", 24: "\x19\x01\x54\x19"})},
		{"libvirt's saved machine state", headOf(map[int]string{0: "LibvirtQemudSave\x02"})},
		{"libvirt's saved machine state, incomplete",
			headOf(map[int]string{0: "LibvirtQemudPart\x02"})},
		{"Linux kernel (bzImage)", headOf(map[int]string{0: "MZ", 0x1fe: "\x55\xaa\xeb\x66HdrS"})},
		{"PE (a program of Windows or UEFI)", headOf(map[int]string{0: "MZ\x90", 0x3c: "\x80",
			0x80: "PE\x00\x00"})},
		{"Mach-O", headOf(map[int]string{0: "\xcf\xfa\xed\xfe\x07"})},
		{"Mach-O", headOf(map[int]string{0: "\xfe\xed\xfa\xce\x00"})},
		{"Mach-O of several processors, or Java class",
			headOf(map[int]string{0: "\xca\xfe\xba\xbe\x00\x00\x00\x02"})},
		{"uImage (U-Boot)", headOf(map[int]string{0: "\x27\x05\x19\x56"})},
		{"PGP message", headOf(map[int]string{0: symmetric})},
		{"PGP message", headOf(map[int]string{0: public})},
		{"HTML", headOf(map[int]string{0: "\r\n \t<!DocType HTML>"})},
		{"HTML", headOf(map[int]string{0: "\xef\xbb\xbf<HTML>"})},
		{"HTML", headOf(map[int]string{0: "<!-- saved -->\n<!-- twice -->\n<html>"})},
		{"HTML", headOf(map[int]string{0: "<!--" + strings.Repeat("long", 300)})},
		{"HTML", headOf(map[int]string{0: "\xff\xfe<\x00h\x00t\x00m\x00l\x00"})},
		{"XML", headOf(map[int]string{0: "\ufeff<?xml version='1.0'?>"})},
		{"Git LFS pointer", headOf(map[int]string{0: "version https://hawser.github.com/spec/v1"})},
	} {
		f := probeBytes(tt.head, tt.head)
		if f.name != tt.name {
			t.Errorf("expected %s, found %s", tt.name, f.name)
			continue
		}
		if text := f.advice(vfs.OS{}, "/nosuch/in", Qcow2, "--format raw"); text == "" {
			t.Errorf("%s: no advice", f.name)
		}
	}
}

// A disk of any content is raw: what begins like another format by chance has no more of it.
func TestDisksStayRaw(t *testing.T) {
	disks := map[string][]byte{
		"zeros": headOf(nil), "ones": bytes.Repeat([]byte{0xff}, probeSize), "nothing": {},
		"one byte": {0x78},
		"MBR": headOf(map[int]string{0: "\xeb\x63\x90\x10\x8e\xd0\xbc\x00\xb0",
			446: "\x80\x20\x21\x00\x83", 510: "\x55\xaa"}),
		"GPT": headOf(map[int]string{450: "\xee\xfe\xff\xff", 510: "\x55\xaa",
			512: "EFI PART\x00\x00\x01\x00"}),
		"ISO hybrid": headOf(map[int]string{0: "\x45\x52\x08\x00\x00\x00\x90\x90",
			510: "\x55\xaa"}),
		"ISO of DOS": headOf(map[int]string{0: "MZ\xeb\x3c", 0x3c: "\xff\xff\xff\xff",
			510: "\x55\xaa"}),
		"XFS":  headOf(map[int]string{0: "XFSB\x00\x00\x10\x00"}),
		"FAT":  headOf(map[int]string{0: "\xeb\x58\x90mkfs.fat", 510: "\x55\xaa"}),
		"NTFS": headOf(map[int]string{0: "\xeb\x52\x90NTFS    ", 510: "\x55\xaa"}),
		"LVM":  headOf(map[int]string{512: "LABELONE"}),
		"swap": headOf(nil), "squashfs": headOf(map[int]string{0: "hsqs"}),
		"text": bytes.Repeat([]byte("a line of a guest's log\n"), 43),
	}
	for name, head := range disks {
		if f := probeBytes(head, head); f.name != Raw {
			t.Errorf("%s: found %s", name, f.name)
		}
	}
	// Every first two bytes, and the starts of formats with one or two bytes of magic.
	rng := rand.New(rand.NewPCG(19, 1))
	head := make([]byte, probeSize)
	for start := range 1 << 16 {
		for i := 0; i < len(head); i += 8 {
			binary.LittleEndian.PutUint64(head[i:], rng.Uint64())
		}
		binary.BigEndian.PutUint16(head, uint16(start))
		if f := probeBytes(head, head); f.name != Raw {
			t.Errorf("random bytes after %04x: found %s", start, f.name)
		}
		clear(head[2:])
		if f := probeBytes(head, head); f.name != Raw {
			t.Errorf("zeros after %04x: found %s", start, f.name)
		}
	}
}

// A disk may begin like a format without a long magic: then the advice names the option that takes
// it as it is. A name stands for one way to unpack.
func TestFormatsTable(t *testing.T) {
	tools := map[string]string{}
	for i := range formats {
		f := &formats[i]
		if known, ok := tools[f.name]; ok && known != f.tool {
			t.Errorf("%s: two tools: %q, %q", f.name, known, f.tool)
		}
		tools[f.name] = f.tool
		if len(f.magic) < 3 || slices.Max([]byte(f.magic)) == 0 {
			t.Errorf("%s: %q proves nothing", f.name, f.magic)
		}
	}
}

// noise returns n bytes that do not compress. Equal seeds give equal bytes.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}
