package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"

	"cowblk/cow/layer"
)

// probes recognize formats for which a fixed text at one offset is missing or proves too little.
// Each gets the first probeSize bytes of a file, or the whole file. The result is nil if it is
// another format.
var probes = []func(head []byte) *fileFormat{
	probeTar, probeBzip2, probeZstdSkippable, probeLZMA, probeCompress, probeZlib, probeCpio,
	probeARJ, probeLHA, probeDump,
	probePGP, probePE, probeMarkup,
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
		string(head[4:10]) != "\x31\x41\x59\x26\x53\x59" &&
			string(head[4:10]) != "\x17\x72\x45\x38\x50\x90" {
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
	if top := dictionary & (dictionary - 1); dictionary < 1<<12 || top != 0 && top&(top-1) != 0 ||
		size != ^uint64(0) && size >= 1<<56 {
		return nil
	}
	return &fileFormat{name: "lzma", kind: kindStream, tool: "xz --format=lzma -dc FILE >NEW",
		disk: true}
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
	if n < 2 || header+n > len(head) || head[header+n-1] != 0 ||
		slices.ContainsFunc(head[header:header+n-1], func(c byte) bool { return c < ' ' }) {
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
	if all, first := int(binary.LittleEndian.Uint16(head[2:])), int(head[4]); first < least ||
		all < first || all > most {
		return nil
	}
	return &fileFormat{name: "arj", kind: kindArchive, tool: "arj x FILE", disk: true}
}

// probeLHA: the method of the first member, "-lh5-", and the level of its header.
func probeLHA(head []byte) *fileFormat {
	if len(head) < 21 || head[2] != '-' || head[6] != '-' || head[20] > 3 ||
		!slices.Contains([]string{"lh", "lz", "pm"}, string(head[3:5])) {
		return nil
	}
	return &fileFormat{name: "lha", kind: kindArchive, tool: "lha x FILE", disk: true}
}

// probeCompress: compress(1) with plausible flags, and codes that the decoder can know.
func probeCompress(head []byte) *fileFormat {
	const header, codes = 3, 32
	if len(head) < header || head[0] != 0x1f || head[1] != 0x9d || head[2]&0x60 != 0 ||
		head[2]&0x1f < 9 || head[2]&0x1f > 16 {
		return nil
	}
	for i := range codes {
		at := header + i*9/8 // codes of 9 bits, the lowest first
		if at+2 > len(head) {
			break
		}
		code := int(binary.LittleEndian.Uint16(head[at:])>>(i*9%8)) & 0x1ff
		if code == 256 || code > 256+i {
			return nil
		}
	}
	return &fileFormat{name: "compress", kind: kindStream, tool: "gzip -dc FILE >NEW"}
}

// probeZlib decompresses what it has: to the end with its checksum, or as far as there is input.
func probeZlib(head []byte) *fileFormat {
	r, err := zlib.NewReader(bytes.NewReader(head))
	if err != nil {
		return nil
	}
	n, err := io.Copy(io.Discard, r)
	if err != nil && (n == 0 || !errors.Is(err, io.ErrUnexpectedEOF)) {
		return nil
	}
	return &fileFormat{name: "zlib", kind: kindStream, tool: "zlib-flate -uncompress <FILE >NEW",
		disk: true}
}

// probeDump: a header of dump(8) in either byte order: its type, 1 to 6, and the magic of one of
// the three versions.
func probeDump(head []byte) *fileFormat {
	if len(head) < 28 {
		return nil
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		magic := order.Uint32(head[24:])
		if order.Uint32(head) <= 6 && (magic == 60011 || magic == 60012 || magic == 0x19540119) {
			return &fileFormat{name: "dump(8)", kind: kindArchive, tool: "restore -rf FILE",
				disk: true}
		}
	}
	return nil
}

// probePGP: a binary message (RFC 4880) that begins with an encrypted session key, followed by
// another packet of such a message.
func probePGP(head []byte) *fileFormat {
	const publicKey, passphrase = 1, 3 // tags of packets with a session key
	tag, body, next := pgpPacket(head)
	var valid bool
	switch {
	case len(body) < 10:
	case tag == publicKey:
		valid = body[0] == 3 && slices.Contains([]byte{1, 2, 3, 16, 18, 25, 26}, body[9])
	case tag == passphrase:
		valid = body[0] >= 4 && body[0] <= 6 && body[1] > 0 && body[1] <= 13 &&
			(body[0] > 4 || body[2] <= 4)
	}
	if follows, _, _ := pgpPacket(next); !valid || !slices.Contains([]int{publicKey, passphrase, 9,
		18, 20}, follows) {
		return nil
	}
	return &fileFormat{name: "PGP message", kind: kindStream, tool: "gpg -o NEW -d FILE",
		disk: true}
}

// pgpPacket returns the tag of the packet at the start of p, and what p has of its body and of what
// follows. Tag 0: p begins with no packet.
func pgpPacket(p []byte) (tag int, body, next []byte) {
	if len(p) < 6 || p[0]&0x80 == 0 {
		return 0, nil, nil
	}
	first, length, start := p[0], 0, 0
	if first&0x40 != 0 {
		tag = int(first & 0x3f)
		switch l := int(p[1]); {
		case l < 192:
			length, start = l, 2
		case l < 224:
			length, start = (l-192)<<8+int(p[2])+192, 3
		case l < 255: // the body continues after a part of this length
			length, start = 1<<(l&0x1f), 2
		default:
			length, start = int(binary.BigEndian.Uint32(p[2:])), 6
		}
	} else {
		tag = int(first >> 2 & 0xf)
		switch first & 3 {
		case 0:
			length, start = int(p[1]), 2
		case 1:
			length, start = int(binary.BigEndian.Uint16(p[1:])), 3
		case 2:
			length, start = int(binary.BigEndian.Uint32(p[1:])), 5
		default: // to the end of the file
			length, start = len(p)-1, 1
		}
	}
	end := min(start+length, len(p))
	return tag, p[start:end], p[end:]
}

// probePE: the header of DOS, and that of Windows where it says.
func probePE(head []byte) *fileFormat {
	if len(head) < 0x40 || string(head[:2]) != "MZ" {
		return nil
	}
	if at := int64(binary.LittleEndian.Uint32(head[0x3c:])); at+4 > int64(len(head)) ||
		string(head[at:at+4]) != "PE\x00\x00" {
		return nil
	}
	return &fileFormat{name: "PE (a program of Windows or UEFI)", kind: kindOther, disk: true}
}

// probeMarkup: HTML or XML in UTF-8 or UTF-16, behind blanks, byte order marks and comments.
func probeMarkup(head []byte) *fileFormat {
	text := head
	if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		text = bytes.ReplaceAll(text[2:], []byte{0}, nil)
	}
	for {
		text = bytes.TrimLeft(bytes.TrimPrefix(text, []byte("\ufeff")), " \t\r\n\f")
		if !bytes.HasPrefix(text, []byte("<!--")) {
			break
		}
		_, rest, closed := bytes.Cut(text, []byte("-->"))
		if !closed {
			return &fileFormat{name: "HTML", kind: kindOther}
		}
		text = rest
	}
	lower := strings.ToLower(string(text[:min(len(text), 16)]))
	if strings.HasPrefix(lower, "<?xml") {
		return &fileFormat{name: "XML", kind: kindOther}
	}
	for _, start := range []string{"<!doctype", "<html", "<head", "<body", "<title", "<script"} {
		if strings.HasPrefix(lower, start) {
			return &fileFormat{name: "HTML", kind: kindOther}
		}
	}
	return nil
}
