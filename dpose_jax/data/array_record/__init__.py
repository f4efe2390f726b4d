"""ArrayRecord data sets: builder, writer, reader."""
