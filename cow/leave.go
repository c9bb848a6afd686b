package cow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// Carried is what the process that Left a disk knew about its head and had not
// made durable: the pages of the map that are not in its file. The data is in the
// kernel, where the next process's syncs find it.
//
// It may reach the next process in any way that does not survive the kernel: a
// bit must not be durable before its data is.
type Carried struct {
	Head  uuid.UUID
	Pages []layer.DirtyPage
}

// Leave closes the disk like Close, but at once: nothing is written back or
// synced, however much there is, and the head is not marked clean. Who opens the
// disk next with what Leave returned (Options.Carried) finds it as it was, and
// owes its durability: every write that no flush has covered is covered by the
// next one there. A power cut is no worse than before; if what Leave returned is
// lost, so are the writes since the last flush, as after the death of a process
// without Options.Live.
//
// ErrInFlight, ErrPromoting, ErrFailed (what a failed flush has lost must not be
// taken for written), and an error where a former head could not be sealed:
// nothing happens.
func (d *Disk) Leave() (*Carried, error) {
	if err := d.failure(); err != nil {
		return nil, fmt.Errorf("leave disk: %w", err)
	}
	if n := d.Stats().Unsealed; n > 0 {
		return nil, fmt.Errorf("leave disk: %d former heads are not sealed yet: %w", n, ErrPromoting)
	}
	late, err := d.shut()
	if err != nil {
		return nil, err
	}
	c := new(Carried)
	errs := []error{late}
	if d.flusher != nil {
		d.flusher.end()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	errs = append(errs, d.view.Load().close())
	layers := d.layers
	if n := len(layers); n > 0 && !d.readOnly {
		head := layers[n-1]
		c.Head = head.Header().UUID
		var err error
		c.Pages, err = head.Leave()
		errs = append(errs, err)
		layers = layers[:n-1]
	}
	if c.Pages == nil {
		c.Pages = []layer.DirtyPage{}
	}
	errs = append(errs, closeFiles(d.base, layers, false))
	d.index.Close()
	return c, errors.Join(errs...)
}

// The form in which Carried crosses from process to process: magic, UUID, number
// of pages; each page's number and words; CRC-32C of all that. Little-endian.
const (
	carriedMagic = "COWBLK\x00C"
	carriedHead  = len(carriedMagic) + 16 + 8
	carriedPage  = 8 + layer.MapPageSize
)

// MarshalBinary implements encoding.BinaryMarshaler.
func (c *Carried) MarshalBinary() ([]byte, error) {
	p := make([]byte, 0, carriedHead+len(c.Pages)*carriedPage+4)
	p = append(p, carriedMagic...)
	p = append(p, c.Head[:]...)
	p = binary.LittleEndian.AppendUint64(p, uint64(len(c.Pages)))
	for i := range c.Pages {
		p = binary.LittleEndian.AppendUint64(p, c.Pages[i].Page)
		for _, w := range c.Pages[i].Words {
			p = binary.LittleEndian.AppendUint64(p, w)
		}
	}
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli())), nil
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (c *Carried) UnmarshalBinary(p []byte) error {
	bad := func(what string) error { return fmt.Errorf("state of a disk that was handed over: %s", what) }
	if len(p) < carriedHead+4 || !bytes.HasPrefix(p, []byte(carriedMagic)) {
		return bad("expected its magic number and header")
	}
	body, sum := p[:len(p)-4], binary.LittleEndian.Uint32(p[len(p)-4:])
	if crc32.Checksum(body, castagnoli()) != sum {
		return bad("the checksum is wrong")
	}
	n := binary.LittleEndian.Uint64(body[carriedHead-8:])
	if hi, size := bits.Mul64(n, uint64(carriedPage)); hi != 0 || size != uint64(len(body)-carriedHead) {
		return bad(fmt.Sprintf("%d bytes for %d pages", len(body)-carriedHead, n))
	}
	copy(c.Head[:], body[len(carriedMagic):])
	c.Pages = make([]layer.DirtyPage, n)
	body = body[carriedHead:]
	for i := range c.Pages {
		c.Pages[i].Page = binary.LittleEndian.Uint64(body)
		for j := range c.Pages[i].Words {
			c.Pages[i].Words[j] = binary.LittleEndian.Uint64(body[8+8*j:])
		}
		body = body[carriedPage:]
	}
	return nil
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }
