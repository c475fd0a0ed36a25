"""The probability that a label is wrong, for selection inside `fit`, its label table and `audit`."""
