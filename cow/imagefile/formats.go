package imagefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"cowblk/cow/layer"
	"cowblk/cow/qcow2"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// fileKind groups file formats by the advice for them.
type fileKind int

const (
	// another disk image format, which qemu-img or another tool converts
	kindImage   fileKind = iota
	kindStream           // a compressed file
	kindArchive          // a file that contains other files
	kindOther            // probably no disk, although a disk may begin like it
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
	lzfse       = "lzfse -decode -i FILE -o NEW"
)

func convert(driver string) string { return fmt.Sprintf(convertWith, driver) }

// probeSize is the number of bytes that a probe reads at the start and at the end of a file.
const probeSize = 1024

// formats are the known formats in probe order: those of qemu-img and the common ones of file(1).
var formats = []fileFormat{
	{name: "qed", magic: "QED\x00", tool: convert("qed")},
	{name: "vmdk", magic: "KDMV", tool: convert("vmdk")},
	{name: "vmdk", magic: "COWD", tool: convert("vmdk")},
	{name: "vmdk (seSparse)", magic: "\xbe\xba\xfe\xca\x00\x00\x00\x00",
		tool: "qemu-img convert -f vmdk -O TO, with the text file of the .vmdk that names this one, NEW.TO"},
	{name: "vmdk (the text that describes one)", magic: "# Disk DescriptorFile",
		tool: convert("vmdk")},
	{name: "vdi", magic: "\x7f\x10\xda\xbe", offset: 0x40, tool: convert("vdi")},
	{name: "vhdx", magic: "vhdxfile", tool: convert("vhdx")},
	{name: "vpc (VHD)", magic: "conectix", tool: convert("vpc")},
	{name: "vpc (VHD of fixed size)", magic: "conectix", offset: -512, tool: convert("vpc"),
		disk: true},
	{name: "vpc (VHD of fixed size, footer of 511 bytes)", magic: "conectix", offset: -511,
		tool: "head -c -511 FILE >NEW.raw", disk: true},
	{name: "parallels", magic: "WithoutFreeSpace", tool: convert("parallels")},
	{name: "parallels", magic: "WithouFreSpacExt", tool: convert("parallels")},
	{name: "cow (User-mode Linux)", magic: "OOOM", tool: "uml_moo FILE NEW.raw"},
	{name: "cow (User-mode Linux)", magic: "MOOO", tool: "uml_moo FILE NEW.raw"},
	{name: "bochs", magic: "Bochs Virtual HD Image", tool: convert("bochs")},
	{name: "cloop", magic: "#!/bin/sh\n#V2.0 Format\nmodprobe cloop", tool: convert("cloop")},
	{name: "dmg", magic: "koly", offset: -512, tool: convert("dmg"), disk: true},
	{name: "dmg (encrypted)", magic: "encrcdsa",
		tool: "hdiutil convert FILE -format UDTO -o NEW (on macOS)"},
	{name: "Apple sparse image", magic: "sprs",
		tool: "hdiutil convert FILE -format UDTO -o NEW (on macOS)"},
	{name: "asif (Apple)", magic: "shdw",
		tool: "diskutil image create from --format RAW FILE NEW (on macOS)"},
	{name: "Android sparse image", magic: "\x3a\xff\x26\xed", tool: "simg2img FILE NEW.raw"},
	{name: "ewf (Expert Witness)", magic: "EVF\x09\x0d\x0a\xff\x00",
		tool: "ewfexport -f raw -t NEW FILE"},
	{name: "aff", magic: "AFF10\r\n\x00", tool: "affconvert -r FILE"},
	{name: "partclone", magic: "partclone-image", tool: "partclone.restore -C -s FILE -O NEW.raw"},
	{name: "partimage", magic: "PaRtImAgE-VoLuMe"},
	{name: "ntfsclone", magic: "\x00ntfsclone-image",
		tool: "ntfsclone --restore-image --output NEW.raw FILE"},
	{name: "vma (Proxmox)", magic: "VMA\x00", tool: "vma extract FILE NEW"},
	{name: "chd", magic: "MComprHD", tool: "chdman extractraw -i FILE -o NEW.raw"},
	{name: "wim", magic: "MSWIM\x00\x00\x00", kind: kindArchive},
	{name: "btrfs send stream", magic: "btrfs-stream\x00"},
	{name: "fsarchiver", magic: "FsA0",
		tool: "fsarchiver restfs FILE id=0,dest=DEVICE, and import DEVICE"},

	{name: "gzip", kind: kindStream, magic: "\x1f\x8b\x08", tool: "gzip -dc FILE >NEW"},
	{name: "xz", kind: kindStream, magic: "\xfd7zXZ\x00", tool: "xz -dc FILE >NEW"},
	{name: "zstd", kind: kindStream, magic: "\x28\xb5\x2f\xfd", tool: "zstd -dc FILE >NEW"},
	{name: "lz4", kind: kindStream, magic: "\x04\x22\x4d\x18", tool: "lz4 -dc FILE >NEW"},
	{name: "lz4 (legacy)", kind: kindStream, magic: "\x02\x21\x4c\x18", tool: "lz4 -dc FILE >NEW"},
	{name: "lzip", kind: kindStream, magic: "LZIP", tool: "lzip -dc FILE >NEW"},
	{name: "lzop", kind: kindStream, magic: "\x89LZO\x00\x0d\x0a\x1a\x0a",
		tool: "lzop -dc FILE >NEW"},
	{name: "lrzip", kind: kindStream, magic: "LRZI", tool: "lrzip -d -o NEW FILE"},
	{name: "rzip", kind: kindStream, magic: "RZIP", tool: "rzip -dk -o NEW FILE"},
	{name: "snappy", kind: kindStream, magic: "\xff\x06\x00\x00sNaPpY"},
	{name: "qpress", kind: kindStream, magic: "qpress10", tool: "qpress -do FILE >NEW"},
	{name: "lzfse", kind: kindStream, magic: "bvx-", tool: lzfse},
	{name: "lzfse", kind: kindStream, magic: "bvx1", tool: lzfse},
	{name: "lzfse", kind: kindStream, magic: "bvx2", tool: lzfse},
	{name: "lzfse", kind: kindStream, magic: "bvxn", tool: lzfse},
	{name: "OpenSSL encrypted", kind: kindStream, magic: "Salted__"},
	{name: "age encrypted", kind: kindStream, magic: "age-encryption.org/",
		tool: "age -d -o NEW FILE"},
	{name: "PGP message", kind: kindStream, magic: "-----BEGIN PGP MESSAGE",
		tool: "gpg -o NEW -d FILE"},

	{name: "cpio", kind: kindArchive, magic: "070701", tool: "cpio -id <FILE", disk: true},
	{name: "cpio", kind: kindArchive, magic: "070702", tool: "cpio -id <FILE", disk: true},
	{name: "cpio", kind: kindArchive, magic: "070707", tool: "cpio -id <FILE", disk: true},
	{name: "zip", kind: kindArchive, magic: "PK\x03\x04", tool: "unzip FILE"},
	{name: "zip", kind: kindArchive, magic: "PK\x05\x06", tool: "unzip FILE"},
	{name: "zip", kind: kindArchive, magic: "PK\x07\x08", tool: "unzip FILE"},
	{name: "7z", kind: kindArchive, magic: "7z\xbc\xaf\x27\x1c", tool: "7z x FILE"},
	{name: "rar", kind: kindArchive, magic: "Rar!\x1a\x07", tool: "unrar x FILE"},
	{name: "zoo", kind: kindArchive, magic: "\xdc\xa7\xc4\xfd", offset: 20, tool: "zoo x FILE"},
	{name: "zpaq", kind: kindArchive, magic: "zPQ\x01", tool: "zpaq x FILE"},
	{name: "zpaq", kind: kindArchive, magic: "zPQ\x02", tool: "zpaq x FILE"},
	{name: "zpaq", kind: kindArchive, magic: "7kSt\xa0\x31\x83\xd3\x8c\xb2\x28\xb0\xd3",
		tool: "zpaq x FILE"},
	{name: "ace", kind: kindArchive, magic: "**ACE**", offset: 7, tool: "unace x FILE"},
	{name: "StuffIt", kind: kindArchive, magic: "SIT!", tool: "unar FILE"},
	{name: "StuffIt", kind: kindArchive, magic: "StuffIt (c)", tool: "unar FILE"},
	{name: "xar", kind: kindArchive, magic: "xar!", tool: "xar -xf FILE"},
	{name: "ar", kind: kindArchive, magic: "!<arch>\n", tool: "ar x FILE"},
	{name: "rpm", kind: kindArchive, magic: "\xed\xab\xee\xdb", tool: "rpm2cpio FILE | cpio -id"},
	{name: "cabinet", kind: kindArchive, magic: "MSCF\x00\x00\x00\x00", tool: "cabextract FILE"},

	{name: "luks", kind: kindOther, magic: "LUKS\xba\xbe",
		tool: "cryptsetup open --type luks --readonly FILE NAME, and import /dev/mapper/NAME",
		disk: true},
	{name: "Git LFS pointer", kind: kindOther, magic: "version https://git-lfs.github.com/",
		tool: "git lfs pull"},
	{name: "Git LFS pointer", kind: kindOther, magic: "version https://hawser.github.com/",
		tool: "git lfs pull"},
	{name: "Git LFS pointer", kind: kindOther, magic: "version http://git-media.io/",
		tool: "git lfs pull"},
	{name: "map of a cowblk layer", kind: kindOther, magic: layer.Magic,
		tool: "it says which blocks of the layer's data count; serve or export the disk that the layer is of"},
	{name: "PNG", kind: kindOther, magic: "\x89PNG\r\n\x1a\n"},
	{name: "PDF", kind: kindOther, magic: "%PDF-"},
	{name: "ELF", kind: kindOther, magic: "\x7fELF", disk: true},
	{name: "Mach-O", kind: kindOther, magic: "\xfe\xed\xfa\xce"},
	{name: "Mach-O", kind: kindOther, magic: "\xfe\xed\xfa\xcf"},
	{name: "Mach-O", kind: kindOther, magic: "\xce\xfa\xed\xfe"},
	{name: "Mach-O", kind: kindOther, magic: "\xcf\xfa\xed\xfe"},
	{name: "Mach-O of several processors, or Java class", kind: kindOther,
		magic: "\xca\xfe\xba\xbe\x00\x00\x00"},
	{name: "Linux kernel (bzImage)", kind: kindOther, magic: "HdrS", offset: 0x202,
		tool: "start a guest with it: qemu-system-x86_64 -kernel FILE", disk: true},
	{name: "uImage (U-Boot)", kind: kindOther, magic: "\x27\x05\x19\x56",
		tool: "it may hold a RAM disk, which dumpimage -T ramdisk -o NEW FILE takes out",
		disk: true},
	{name: "device tree or FIT image (U-Boot)", kind: kindOther, magic: "\xd0\x0d\xfe\xed",
		disk: true},
	{name: "Android boot image", kind: kindOther, magic: "ANDROID!"},
	{name: "JPEG", kind: kindOther, magic: "\xff\xd8\xff"},
	{name: "GIF", kind: kindOther, magic: "GIF8"},
	{name: "SQLite database", kind: kindOther, magic: "SQLite format 3\x00"},
	{name: "core dump (kdump)", kind: kindOther, magic: "KDUMP   "},
	{name: "QEMU's saved machine state", kind: kindOther, magic: "QEVM"},
	{name: "libvirt's saved machine state", kind: kindOther, magic: "LibvirtQemudSave",
		tool: "it holds the memory of a guest, not its disk; virsh restore FILE starts the guest again"},
	{name: "libvirt's saved machine state, incomplete", kind: kindOther, magic: "LibvirtQemudPart"},
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
	for _, probe := range probes {
		if found := probe(head); found != nil {
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

// advice returns how to convert a file of the format to the format to. path is absolute, and the
// commands overwrite no file. word is the option that accepts the file as it is.
func (f *fileFormat) advice(fsys vfs.FS, path, to, word string) string {
	var text string
	fresh := ".new"
	if f.kind == kindStream {
		fresh = ".unpacked"
	}
	words := []string{"FILE", shell.Path(path)}
	for _, n := range []struct{ name, ext string }{{"NEW.TO", "." + to}, {"NEW.raw", ".raw"},
		{"NEW", ""}} {
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
			kindOther: "this is no disk image: see where it comes from",
			kindImage: "make a raw file of it with the tool that wrote it",
		}[f.kind]
	}
	if f.disk {
		text += "\nif the guest's disk really holds this as it is: " + word
	}
	return text
}
