package main

import (
	"strconv"
	"time"
)

// release is set by the linker in released builds.
var release string

// built is when this program was made, in seconds since 1970, if the linker was told.
var built string

// buildTime is when this program was made, or its source was committed; zero when
// nobody knows.
func buildTime() time.Time {
	if s, err := strconv.ParseInt(built, 10, 64); err == nil {
		return time.Unix(s, 0)
	}
	_, committed := buildInfo()
	return committed
}

func version() string {
	if release != "" {
		return release
	}
	if v, _ := buildInfo(); v != "" {
		return v
	}
	return "(devel)"
}
