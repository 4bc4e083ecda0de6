package harness

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// ShiftClock sets the wall clock of the process off by some seconds, from now on and
// for it alone. The kernel has no such clocks, and a program without a C library
// cannot be given another one: so the function by which a process reads its clock,
// which the kernel puts into its memory, is replaced there.
func (p *Proc) ShiftClock(tb testing.TB, by time.Duration) {
	tb.Helper()
	if err := shiftClock(p.PID(), int32(by/time.Second)); err != nil {
		tb.Fatalf("clock of %s: %v", p.Name, err)
	}
}

func shiftClock(pid int, seconds int32) error {
	const name = "__vdso_clock_gettime"
	code := []byte{
		0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi: the clock; the wall clock is 0
		0x75, 0x07, // jnz to ret
		0x48, 0x81, 0x06, 0, 0, 0, 0, // add qword [rsi], seconds: of the struct timespec
		0xc3, // ret
	}
	binary.LittleEndian.PutUint32(code[14:], uint32(seconds))
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	var first, end int64
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "[vdso]") {
			fmt.Sscanf(line, "%x-%x", &first, &end)
		}
	}
	if first == 0 {
		return errors.New("its memory has no [vdso]")
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	image := make([]byte, end-first)
	if _, err := memory.ReadAt(image, first); err != nil {
		return err
	}
	library, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return err
	}
	symbols, err := library.DynamicSymbols()
	if err != nil {
		return err
	}
	for _, s := range symbols {
		if s.Name == name && s.Size >= uint64(len(code)) {
			_, err := memory.WriteAt(code, first+int64(s.Value))
			return err
		}
	}
	return errors.New("its [vdso] has no " + name)
}
