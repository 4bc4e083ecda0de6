package redisregistry

import (
	"flag"
	"os"
	"testing"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Most tests wait for leases to end, all at the same time. Fuzzing would start as
	// many processes.
	if flag.Lookup("test.fuzz").Value.String() == "" {
		if err := flag.Set("test.parallel", "400"); err != nil {
			panic(err)
		}
	}
	// The random tests run over six kinds of servers; a longer run is for a machine
	// of its own.
	if os.Getenv("IOTTUNNEL_STEPS") == "" {
		if err := os.Setenv("IOTTUNNEL_STEPS", "120"); err != nil {
			panic(err)
		}
	}
	leak.Main(m)
}
