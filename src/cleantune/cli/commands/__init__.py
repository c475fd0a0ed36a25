"""One module a verb, with the click command under the verb's name; imported when the verb is used."""
