"""What a program in a namespace would see, a program in its guest sees: compared field by field."""
