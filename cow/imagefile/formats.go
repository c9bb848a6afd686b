package imagefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"cowblk/cow/layer"
	"cowblk/cow/qcow2"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// fileKind groups file formats by the advice for them.
type fileKind int

const (
	kindImage   fileKind = iota // another disk image format, which qemu-img or another tool converts
	kindStream                  // a compressed file
	kindArchive                 // a file that contains other files
	kindOther                   // probably no disk, although a disk may begin like it
)

// fileFormat is a file format other than a raw disk.
type fileFormat struct {
	name string
	kind fileKind
	// magic is at offset in each file of the format. A negative offset counts from the end of the
	// file.
	magic  string
	offset int64
	// tool converts or unpacks the file. In it FILE stands for the file, NEW for a new file and TO
	// for the target format. Empty: no advice.
	tool string
	// disk: the disk of a guest may begin like this.
	disk bool
}

const (
	convertWith = "qemu-img convert -f %s -O TO FILE NEW.TO"
	extractWith = "unpack it in an empty directory, and import the disk image that is in it"
)

func convert(driver string) string { return fmt.Sprintf(convertWith, driver) }

// probeSize is the number of bytes that a probe reads at the start and at the end of a file.
const probeSize = 1024

// formats are the known formats in probe order: those of qemu-img and the common ones of file(1).
var formats = []fileFormat{
	{name: "qed", magic: "QED\x00", tool: convert("qed")},
	{name: "vmdk", magic: "KDMV", tool: convert("vmdk")},
	{name: "vmdk", magic: "COWD", tool: convert("vmdk")},
	{name: "vmdk (the text that describes one)", magic: "# Disk DescriptorFile", tool: convert("vmdk")},
	{name: "vdi", magic: "\x7f\x10\xda\xbe", offset: 0x40, tool: convert("vdi")},
	{name: "vhdx", magic: "vhdxfile", tool: convert("vhdx")},
	{name: "vpc (VHD)", magic: "conectix", tool: convert("vpc")},
	{name: "vpc (VHD of fixed size)", magic: "conectix", offset: -512, tool: convert("vpc"), disk: true},
	{name: "parallels", magic: "WithoutFreeSpace", tool: convert("parallels")},
	{name: "parallels", magic: "WithouFreSpacExt", tool: convert("parallels")},
	{name: "cow (User-mode Linux)", magic: "OOOM", tool: "uml_moo FILE NEW.raw"},
	{name: "cow (User-mode Linux)", magic: "MOOO", tool: "uml_moo FILE NEW.raw"},
	{name: "bochs", magic: "Bochs Virtual HD Image", tool: convert("bochs")},
	{name: "cloop", magic: "#!/bin/sh\n#V2.0 Format\nmodprobe cloop", tool: convert("cloop")},
	{name: "dmg", magic: "koly", offset: -512, tool: convert("dmg"), disk: true},
	{name: "dmg (encrypted)", magic: "encrcdsa", tool: "hdiutil convert FILE -format UDTO -o NEW (on macOS)"},
	{name: "Apple sparse image", magic: "sprs", tool: "hdiutil convert FILE -format UDTO -o NEW (on macOS)"},
	{name: "asif (Apple)", magic: "shdw", tool: "diskutil image create from --format RAW FILE NEW (on macOS)"},
	{name: "Android sparse image", magic: "\x3a\xff\x26\xed", tool: "simg2img FILE NEW.raw"},
	{name: "ewf (Expert Witness)", magic: "EVF\x09\x0d\x0a\xff\x00", tool: "ewfexport -f raw -t NEW FILE"},
	{name: "aff", magic: "AFF10\r\n\x00", tool: "affconvert -r FILE"},
	{name: "partclone", magic: "partclone-image", tool: "partclone.restore -C -s FILE -O NEW.raw"},
	{name: "partimage", magic: "PaRtImAgE-VoLuMe"},
	{name: "ntfsclone", magic: "\x00ntfsclone-image", tool: "ntfsclone --restore-image --output NEW.raw FILE"},
	{name: "vma (Proxmox)", magic: "VMA\x00", tool: "vma extract FILE NEW"},
	{name: "chd", magic: "MComprHD", tool: "chdman extractraw -i FILE -o NEW.raw"},
	{name: "wim", magic: "MSWIM\x00\x00\x00", kind: kindArchive},
	{name: "btrfs send stream", magic: "btrfs-stream\x00"},

	{name: "gzip", kind: kindStream, magic: "\x1f\x8b\x08", tool: "gzip -dc FILE >NEW"},
	{name: "compress", kind: kindStream, magic: "\x1f\x9d", tool: "gzip -dc FILE >NEW"},
	{name: "xz", kind: kindStream, magic: "\xfd7zXZ\x00", tool: "xz -dc FILE >NEW"},
	{name: "zstd", kind: kindStream, magic: "\x28\xb5\x2f\xfd", tool: "zstd -dc FILE >NEW"},
	{name: "lz4", kind: kindStream, magic: "\x04\x22\x4d\x18", tool: "lz4 -dc FILE >NEW"},
	{name: "lz4 (legacy)", kind: kindStream, magic: "\x02\x21\x4c\x18", tool: "lz4 -dc FILE >NEW"},
	{name: "lzip", kind: kindStream, magic: "LZIP", tool: "lzip -dc FILE >NEW"},
	{name: "lzop", kind: kindStream, magic: "\x89LZO\x00\x0d\x0a\x1a\x0a", tool: "lzop -dc FILE >NEW"},
	{name: "lrzip", kind: kindStream, magic: "LRZI", tool: "lrzip -d -o NEW FILE"},
	{name: "rzip", kind: kindStream, magic: "RZIP", tool: "rzip -dk -o NEW FILE"},
	{name: "snappy", kind: kindStream, magic: "\xff\x06\x00\x00sNaPpY"},
	{name: "qpress", kind: kindStream, magic: "qpress10", tool: "qpress -do FILE >NEW"},
	{name: "OpenSSL encrypted", kind: kindStream, magic: "Salted__"},
	{name: "age encrypted", kind: kindStream, magic: "age-encryption.org/", tool: "age -d -o NEW FILE"},
	{name: "PGP message", kind: kindStream, magic: "-----BEGIN PGP MESSAGE", tool: "gpg -o NEW -d FILE"},

	{name: "cpio", kind: kindArchive, magic: "070701", tool: "cpio -id <FILE", disk: true},
	{name: "cpio", kind: kindArchive, magic: "070702", tool: "cpio -id <FILE", disk: true},
	{name: "cpio", kind: kindArchive, magic: "070707", tool: "cpio -id <FILE", disk: true},
	{name: "zip", kind: kindArchive, magic: "PK\x03\x04", tool: "unzip FILE"},
	{name: "zip", kind: kindArchive, magic: "PK\x05\x06", tool: "unzip FILE"},
	{name: "zip", kind: kindArchive, magic: "PK\x07\x08", tool: "unzip FILE"},
	{name: "7z", kind: kindArchive, magic: "7z\xbc\xaf\x27\x1c", tool: "7z x FILE"},
	{name: "rar", kind: kindArchive, magic: "Rar!\x1a\x07", tool: "unrar x FILE"},
	{name: "zoo", kind: kindArchive, magic: "\xdc\xa7\xc4\xfd", offset: 20, tool: "zoo x FILE"},
	{name: "xar", kind: kindArchive, magic: "xar!", tool: "xar -xf FILE"},
	{name: "ar", kind: kindArchive, magic: "!<arch>\n", tool: "ar x FILE"},
	{name: "rpm", kind: kindArchive, magic: "\xed\xab\xee\xdb", tool: "rpm2cpio FILE | cpio -id"},
	{name: "cabinet", kind: kindArchive, magic: "MSCF\x00\x00\x00\x00", tool: "cabextract FILE"},

	{name: "luks", kind: kindOther, magic: "LUKS\xba\xbe", tool: "cryptsetup open --type luks --readonly FILE NAME, and import /dev/mapper/NAME", disk: true},
	{name: "HTML", kind: kindOther, magic: "<!DOCTYPE"},
	{name: "HTML", kind: kindOther, magic: "<!doctype"},
	{name: "HTML", kind: kindOther, magic: "<html"},
	{name: "XML", kind: kindOther, magic: "<?xml"},
	{name: "Git LFS pointer", kind: kindOther, magic: "version https://git-lfs.github.com/", tool: "git lfs pull"},
	{name: "map of a cowblk layer", kind: kindOther, magic: layer.Magic, tool: "it says which blocks of the layer's data count; serve or export the disk that the layer is of"},
	{name: "PNG", kind: kindOther, magic: "\x89PNG\r\n\x1a\n"},
	{name: "PDF", kind: kindOther, magic: "%PDF-"},
	{name: "ELF", kind: kindOther, magic: "\x7fELF", disk: true},
	{name: "core dump (kdump)", kind: kindOther, magic: "KDUMP   "},
	{name: "QEMU's saved machine state", kind: kindOther, magic: "QEVM"},
}

// probe detects the format of a file: raw, qcow2, or one that cannot be imported. Unknown content
// is raw: file systems, partition tables and optical discs are contents of disks.
func probe(f vfs.File) (*fileFormat, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	head := make([]byte, min(probeSize, size))
	tail := make([]byte, min(probeSize, size))
	for _, part := range []struct {
		p   []byte
		off int64
	}{{head, 0}, {tail, size - int64(len(tail))}} {
		if _, err := f.ReadAt(part.p, part.off); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return probeBytes(head, tail), nil
}

// Formats that can be imported.
const (
	Raw   = "raw"
	Qcow2 = "qcow2"
)

func probeBytes(head, tail []byte) *fileFormat {
	if bytes.HasPrefix(head, []byte(qcow2.Magic)) {
		if len(head) >= 8 && binary.BigEndian.Uint32(head[4:]) == 1 {
			return &fileFormat{name: "qcow", tool: convert("qcow")}
		}
		return &fileFormat{name: Qcow2}
	}
	for i := range formats {
		if f := &formats[i]; f.matches(head, tail) {
			return f
		}
	}
	for _, f := range []func([]byte) *fileFormat{probeTar, probeBzip2, probeZstdSkippable, probeLZMA, probeCpio, probeARJ} {
		if found := f(head); found != nil {
			return found
		}
	}
	return &fileFormat{name: Raw}
}

func (f *fileFormat) matches(head, tail []byte) bool {
	at, p := f.offset, head
	if at < 0 {
		at, p = at+int64(len(tail)), tail
	}
	return at >= 0 && at <= int64(len(p)) && bytes.HasPrefix(p[at:], []byte(f.magic))
}

// probeTar verifies the checksum of the first member: the oldest archives have no magic.
func probeTar(head []byte) *fileFormat {
	const field, length = 148, 8
	if len(head) < layer.SectorSize {
		return nil
	}
	h := head[:layer.SectorSize]
	text := strings.Trim(string(h[field:field+length]), " \x00")
	want, err := strconv.ParseInt(text, 8, 32)
	if err != nil || h[0] == 0 {
		return nil
	}
	unsigned, signed := int64(length)*' ', int64(length)*' '
	for i, c := range h {
		if i < field || i >= field+length {
			unsigned, signed = unsigned+int64(c), signed+int64(int8(c))
		}
	}
	if want != unsigned && want != signed {
		return nil
	}
	f := &fileFormat{name: "tar", kind: kindArchive, tool: "tar -xf FILE", disk: true}
	name, _, _ := bytes.Cut(h[:100], []byte{0})
	if bytes.HasSuffix(name, []byte(".ovf")) {
		f.name, f.tool = "ova (tar)", "tar -xf FILE, and import the .vmdk after qemu-img convert"
	}
	return f
}

// probeBzip2: "BZh", the block size, then the magic of a block or of the stream's end.
func probeBzip2(head []byte) *fileFormat {
	if len(head) < 10 || string(head[:3]) != "BZh" || head[3] < '1' || head[3] > '9' ||
		string(head[4:10]) != "\x31\x41\x59\x26\x53\x59" && string(head[4:10]) != "\x17\x72\x45\x38\x50\x90" {
		return nil
	}
	return &fileFormat{name: "bzip2", kind: kindStream, tool: "bzip2 -dc FILE >NEW"}
}

// probeZstdSkippable: a skippable frame before frames of zstd or lz4.
func probeZstdSkippable(head []byte) *fileFormat {
	if len(head) < 8 || head[0]&0xf0 != 0x50 || string(head[1:4]) != "\x2a\x4d\x18" {
		return nil
	}
	return &fileFormat{name: "zstd", kind: kindStream, tool: "zstd -dc FILE >NEW"}
}

// probeLZMA: the properties of common encoders, a dictionary size that they use, and a size or
// none.
func probeLZMA(head []byte) *fileFormat {
	if len(head) < 13 || head[0] != 0x5d {
		return nil
	}
	dictionary, size := binary.LittleEndian.Uint32(head[1:]), binary.LittleEndian.Uint64(head[5:])
	if top := dictionary & (dictionary - 1); dictionary < 1<<12 || top != 0 && top&(top-1) != 0 || size != ^uint64(0) && size >= 1<<56 {
		return nil
	}
	return &fileFormat{name: "lzma", kind: kindStream, tool: "xz --format=lzma -dc FILE >NEW", disk: true}
}

// probeCpio: the old binary format in either byte order, with a plausible name.
func probeCpio(head []byte) *fileFormat {
	const header = 26
	if len(head) < header {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch {
	case head[0] == 0xc7 && head[1] == 0x71:
	case head[0] == 0x71 && head[1] == 0xc7:
		order = binary.BigEndian
	default:
		return nil
	}
	n := int(order.Uint16(head[20:]))
	if n < 2 || header+n > len(head) || head[header+n-1] != 0 || slices.ContainsFunc(head[header:header+n-1], func(c byte) bool { return c < ' ' }) {
		return nil
	}
	return &fileFormat{name: "cpio", kind: kindArchive, tool: "cpio -id <FILE", disk: true}
}

// probeARJ: a main header (type 2) of a plausible length.
func probeARJ(head []byte) *fileFormat {
	const least, most = 30, 2600 // bytes: minimum of the first part, maximum of the whole header
	if len(head) < 11 || head[0] != 0x60 || head[1] != 0xea || head[10] != 2 {
		return nil
	}
	if all, first := int(binary.LittleEndian.Uint16(head[2:])), int(head[4]); first < least || all < first || all > most {
		return nil
	}
	return &fileFormat{name: "arj", kind: kindArchive, tool: "arj x FILE", disk: true}
}

// advice returns how to convert a file of the format to the format to. path is absolute, and the
// commands overwrite no file. word is the option that accepts the file as it is.
func (f *fileFormat) advice(fsys vfs.FS, path, to, word string) string {
	var text string
	fresh := ".new"
	if f.kind == kindStream {
		fresh = ".unpacked"
	}
	words := []string{"FILE", shell.Path(path)}
	for _, n := range []struct{ name, ext string }{{"NEW.TO", "." + to}, {"NEW.raw", ".raw"}, {"NEW", ""}} {
		words = append(words, n.name, shell.Path(unusedPath(fsys, path, fresh, n.ext)))
	}
	words = append(words, "-O TO", "-O "+to)
	tool := strings.NewReplacer(words...).Replace(f.tool)
	switch f.kind {
	case kindStream:
		text = "unpack it first: " + tool
	case kindArchive:
		text = extractWith + ": " + tool
	case kindOther:
		text = "this is no disk image"
		if tool != "" {
			text += ": " + tool
		}
		if f.name == "luks" {
			text = "the disk in it is encrypted; open it first: " + tool
		}
	default:
		text = "convert it first: " + tool
	}
	if f.tool == "" {
		text = map[fileKind]string{
			kindStream: "decrypt or unpack it first", kindArchive: extractWith,
			kindOther: "this is no disk image: see where it comes from", kindImage: "make a raw file of it with the tool that wrote it",
		}[f.kind]
	}
	if f.disk {
		text += "\nif the guest's disk really holds this as it is: " + word
	}
	return text
}
