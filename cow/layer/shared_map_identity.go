package layer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync/atomic"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// identity names the head that a shared map belongs to. It is in the first 2,048 bytes of the file,
// as little-endian words: magic, UUID, generation, boot, map, data, path, and at the end a CRC-32C.
type identity struct {
	UUID       uuid.UUID
	Generation uint64
	Boot       bootID
	Map, Data  fileIdentity
	Path       string // of the map, absolute, at most maxMapPath bytes; empty if longer
}

// fileIdentity identifies a file on one mounted file system.
type fileIdentity struct {
	Dev, Inode uint64
	Block      bool
	Instance   string // vfs.SharedFS.Instance, at most maxInstance bytes
}

const (
	sharedMagic   = "COWBLK\x00U"
	identitySize  = 2048
	maxInstance   = 255
	maxMapPath    = 1024
	identityWords = identitySize / 8
)

// bootID identifies a run of the kernel.
type bootID [16]byte

// newBootID returns the UUID of Linux's boot_id, or the first bytes of any other name.
func newBootID(name string) (b bootID) {
	if id, err := uuid.Parse(name); err == nil {
		return bootID(id)
	}
	copy(b[:], name)
	return b
}

func (i *fileIdentity) is(id vfs.Identity) bool {
	return i.Dev == id.Dev && i.Inode == id.Inode && i.Block == id.Block
}

// identifyFile returns the identity of f.
func identifyFile(sfs vfs.SharedFS, f vfs.File) (fileIdentity, error) {
	id, err := f.Identity()
	if err != nil {
		return fileIdentity{}, err
	}
	instance, err := sfs.Instance(f)
	if err == nil && len(instance) > maxInstance {
		err = fmt.Errorf("name of the file system of %s: expected at most %d bytes, found %d",
			f.Name(), maxInstance, len(instance))
	}
	return fileIdentity{Dev: id.Dev, Inode: id.Inode, Block: id.Block, Instance: instance}, err
}

func (i *identity) encode() (p [identitySize]byte) {
	b := append(p[:0], sharedMagic...)
	b = append(b, i.UUID[:]...)
	b = binary.LittleEndian.AppendUint64(b, i.Generation)
	b = append(b, i.Boot[:]...)
	for _, f := range []*fileIdentity{&i.Map, &i.Data} {
		b = binary.LittleEndian.AppendUint64(b, f.Dev)
		b = binary.LittleEndian.AppendUint64(b, f.Inode)
		if f.Block {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
		b = append(b, byte(len(f.Instance)))
		b = append(b, f.Instance...)
		b = append(b, make([]byte, maxInstance-len(f.Instance))...)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(i.Path)))
	copy(p[len(b):identitySize-4], i.Path)
	binary.LittleEndian.PutUint32(p[identitySize-4:], crc32.Checksum(p[:identitySize-4],
		castagnoli()))
	return p
}

func decodeIdentity(p *[identitySize]byte) (i identity, err error) {
	if string(p[:len(sharedMagic)]) != sharedMagic {
		return i, fmt.Errorf("magic: expected %q, found %q", sharedMagic, p[:len(sharedMagic)])
	}
	if sum := crc32.Checksum(p[:identitySize-4], castagnoli()); binary.LittleEndian.Uint32(
		p[identitySize-4:]) != sum {
		return i, fmt.Errorf("checksum: expected %s, found %s", hex32(sum),
			hex32(binary.LittleEndian.Uint32(p[identitySize-4:])))
	}
	b := p[len(sharedMagic):]
	next := func(n int) []byte { v := b[:n]; b = b[n:]; return v }
	copy(i.UUID[:], next(16))
	i.Generation = binary.LittleEndian.Uint64(next(8))
	copy(i.Boot[:], next(len(i.Boot)))
	for _, f := range []*fileIdentity{&i.Map, &i.Data} {
		f.Dev, f.Inode = binary.LittleEndian.Uint64(next(8)), binary.LittleEndian.Uint64(next(8))
		f.Block = next(1)[0] != 0
		n := next(1)[0]
		f.Instance = string(next(maxInstance)[:n])
	}
	n := min(int(binary.LittleEndian.Uint16(next(2))), maxMapPath)
	i.Path = string(next(n))
	return i, nil
}

// store writes i to the start of a mapping.
func (i *identity) store(words []uint64) {
	p := i.encode()
	for w := range identityWords {
		atomic.StoreUint64(&words[w], binary.LittleEndian.Uint64(p[8*w:]))
	}
}

// identity reads the identity from the file.
func (s *sharedMap) identity() (identity, error) {
	var p [identitySize]byte
	err := guarded(func() {
		for w := range identityWords {
			binary.LittleEndian.PutUint64(p[8*w:], s.word(w))
		}
	})
	if err != nil {
		return identity{}, err
	}
	i, err := decodeIdentity(&p)
	if err != nil {
		return i, finding.New(ErrUnflushed, s.file.Name(), err.Error(), "", "", adviceUnflushed)
	}
	return i, nil
}
